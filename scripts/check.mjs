// Everything CI runs, in the order in which it fails fastest. With arguments: only vitest, with those arguments.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './setup.mjs'

const npx = (name, tool, ...args) => ({ name, command: join(root, 'node_modules', '.bin', tool), args })
const report = join(root, 'build', 'vitest.json')
const tests = (args) =>
  npx('tests', 'vitest', 'run', '--reporter=default', '--reporter=json', `--outputFile.json=${report}`, ...args)

const STEPS = [
  npx('format', 'oxfmt', '--check'),
  npx('lint', 'oxlint', '--deny-warnings'),
  npx('proto lint', 'buf', 'lint'),
  npx('types', 'tsc'),
  npx('dead code', 'knip'),
  { name: 'generated files', command: process.execPath, args: ['scripts/generate.mjs', '--check'] },
  {
    name: 'native tests',
    command: 'ctest',
    args: ['--test-dir', 'build/native', '--output-on-failure', '--parallel', '2'],
  },
  { name: 'CUDA sources', command: process.execPath, args: ['scripts/build-native.mjs', '--check-cuda'] },
  npx('PTX', 'tsx', 'scripts/check-ptx.ts'),
]

/** Runs one step with its output shown; true when it succeeded. */
function passes({ name, command, args }) {
  const started = Date.now()
  console.log(`\n== ${name}`)
  const { status } = spawnSync(command, args, { stdio: 'inherit', cwd: root })
  console.log(`== ${name}: ${status === 0 ? 'ok' : 'FAILED'} in ${((Date.now() - started) / 1000).toFixed(1)} s`)
  return status === 0
}

/** Runs the checks (with arguments: only vitest with them) and exits 0 only when all pass; the last line counts them. */
export function check(args) {
  const steps = args.length > 0 ? [tests(args)] : [...STEPS, tests([])]
  const failed = steps.filter((step) => !passes(step)).map(({ name }) => name)
  const { numPassedTests, numFailedTests, numPendingTests } = readReport()
  if (failed.length > 0) console.log(`\nFailed: ${failed.join(', ')}`)
  const otherFailures = failed.filter((name) => name !== 'tests').length
  const passed = numPassedTests + steps.length - 1 - otherFailures
  console.log(`\n${passed} passed, ${numFailedTests + otherFailures} failed, ${numPendingTests} skipped`)
  process.exit(failed.length === 0 ? 0 : 1)
}

function readReport() {
  try {
    return JSON.parse(readFileSync(report, 'utf8'))
  } catch {
    return { numPassedTests: 0, numFailedTests: 1, numPendingTests: 0 }
  }
}
