// Holds the PTX that `build-native.mjs --check-cuda` left to what wgmma asks of its operands.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { wgmmaOperands } from './wgmma-operands.js'

const folder = join(dirname(fileURLToPath(import.meta.url)), '..', 'build', 'cuda-check')
const files = existsSync(folder)
  ? readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ptx'))
  : []
const kernels = files.flatMap((name) => wgmmaOperands(readFileSync(join(folder, name), 'utf8')))
const wrong = kernels.filter(({ overwrites }) => overwrites.length > 0)
for (const { kernel, overwrites } of wrong) {
  console.error(`${kernel} writes operands of products under way:\n  ${overwrites.join('\n  ')}`)
}
console.log(files.length === 0 ? 'skipped: no PTX' : `${kernels.length} kernels with wgmma, ${wrong.length} wrong`)
process.exit(wrong.length === 0 ? 0 : 1)
