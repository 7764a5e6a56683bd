/** Server reflection (v1 and v1alpha) from the descriptor set that buf writes beside the generated code. */
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadFileDescriptorSetFromBuffer, loadSync } from '@grpc/proto-loader'
import { ReflectionService } from '@grpc/reflection'
import { protoPath as healthProtoPath } from 'grpc-health-check'

const DESCRIPTOR = join('proto', 'gen', 'descriptor.binpb')

/** Services a client is told of; the engine's internal one shares the descriptor set but is not served here. */
const LISTED = ['edgeshift.v1.Gateway', 'grpc.health.v1.Health']

/** Reflection over the public services. Throws when the descriptor set is missing: the installation is broken. */
export function reflectionService(): ReflectionService {
  const descriptor = readFileSync(join(packageRoot(), DESCRIPTOR))
  const packages = { ...loadFileDescriptorSetFromBuffer(descriptor), ...loadSync(healthProtoPath) }
  return new ReflectionService(packages, { services: LISTED })
}

/** The nearest folder above this module that holds the descriptor: the module runs from its source and from dist/. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, DESCRIPTOR))) {
    const parent = dirname(folder)
    if (parent === folder) throw new Error(`${DESCRIPTOR} is missing: run "npm run generate"`)
    folder = parent
  }
  return folder
}
