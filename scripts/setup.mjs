// Brings a clone into a runnable state, doing only what is missing: packages, bundles, native addon.
// Plain JavaScript without dependencies, since it runs before anything is installed.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Absolute path of the repository. */
export const root = join(dirname(fileURLToPath(import.meta.url)), '..')

/** Exits with one line when this Node.js is too old to run the project. */
export function requireNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > 20 || (major === 20 && minor >= 19)) return
  console.error(`edgeshift needs Node.js 20.19 or newer; this is ${process.version}.`)
  process.exit(1)
}

/** Runs a command in the repository with its output shown; exits when it fails. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { stdio: 'inherit', cwd: root, ...options })
  if (result.status !== 0) process.exit(result.status ?? 1)
}

function* walk(path) {
  if (!statSync(path).isDirectory()) {
    yield path
    return
  }
  for (const entry of readdirSync(path).sort()) {
    if (entry !== 'node_modules') yield* walk(join(path, entry))
  }
}

// Content, not times: a fresh clone and a copied build tree must both come out right.
function fingerprint(paths) {
  const hash = createHash('sha256')
  for (const path of paths.map((p) => join(root, p)).filter(existsSync)) {
    for (const file of walk(path)) hash.update(file).update('\0').update(readFileSync(file)).update('\0')
  }
  return hash.digest('hex')
}

/** Runs `make` unless the inputs are the ones of its last success; `product` must exist afterwards. */
function unlessFresh(name, inputs, product, make) {
  const stamp = join(root, 'build', `${name}.stamp`)
  const wanted = fingerprint(inputs)
  if (existsSync(join(root, product)) && existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) return
  make()
  mkdirSync(dirname(stamp), { recursive: true })
  writeFileSync(stamp, wanted)
}

const buildNative = (...flags) => run(process.execPath, ['scripts/build-native.mjs', ...flags])

/** Installs packages and builds what is missing; with `tests`, also the native tests. */
export function setUp({ tests = false } = {}) {
  requireNode()
  unlessFresh('packages', ['package-lock.json', 'package.json'], 'node_modules/.package-lock.json', () => {
    console.log('Installing packages ...')
    run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error'])
  })
  unlessFresh(
    'bundle',
    ['gateway', 'engine', 'proto/gen', 'scripts/build.mjs', 'package-lock.json'],
    'dist/cli.js',
    () => run(process.execPath, ['scripts/build.mjs']),
  )
  const native = ['native', 'scripts/build-native.mjs', 'package-lock.json']
  const product = 'build/native/edgeshift.node'
  if (tests) unlessFresh('native-tests', native, product, () => buildNative('--tests'))
  unlessFresh('native', native, product, () => {
    if (!tests) console.log('Building the native backend (a minute or two, once) ...')
    buildNative(...(tests ? ['--tests'] : []))
  })
}
