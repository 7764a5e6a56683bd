import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { NativeAddon } from './native.js'

const ADDON_PATH = join('build', 'native', 'edgeshift.node')

/** The nearest directory above `start` that holds a package.json: sources and bundles lie at different depths. */
function packageRoot(start: string): string {
  for (let directory = start; ; directory = dirname(directory)) {
    if (existsSync(join(directory, 'package.json'))) return directory
    if (dirname(directory) === directory) throw new Error(`no package.json in ${start} or above it`)
  }
}

let loaded: NativeAddon | undefined

/**
 * Loads build/native/edgeshift.node of this package, once per thread.
 * Throws an Error that says what to run when it is missing or was built for another machine.
 */
export function loadAddon(): NativeAddon {
  if (loaded !== undefined) return loaded
  const path = join(packageRoot(dirname(fileURLToPath(import.meta.url))), ADDON_PATH)
  if (!existsSync(path)) throw new Error(`the native addon is missing (${path}): run "npm run build:native"`)
  try {
    loaded = createRequire(import.meta.url)(path) as NativeAddon
  } catch (cause) {
    throw new Error(`the native addon ${path} cannot be loaded: run "npm run build:native" on this machine`, { cause })
  }
  return loaded
}
