// Everything CI runs, in the order in which it fails fastest. With arguments: only vitest, with those arguments.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './setup.mjs'

const npx = (name, ...args) => [join(root, 'node_modules', '.bin', name), args]
const report = join(root, 'build', 'vitest.json')
const vitest = (...args) =>
  npx('vitest', 'run', '--reporter=default', '--reporter=json', `--outputFile.json=${report}`, ...args)

const STEPS = [
  ['format', npx('oxfmt', '--check')],
  ['lint', npx('oxlint', '--deny-warnings')],
  ['proto lint', npx('buf', 'lint')],
  ['types', npx('tsc')],
  ['dead code', npx('knip')],
  ['generated files', [process.execPath, ['scripts/generate.mjs', '--check']]],
  ['native tests', ['ctest', ['--test-dir', 'build/native', '--output-on-failure', '--parallel', '2']]],
]

/** Runs the checks and exits 0 only when all pass; the last line counts them. */
export function check(args) {
  const steps = args.length > 0 ? [['tests', vitest(...args)]] : [...STEPS, ['tests', vitest()]]
  const failed = []
  for (const [name, [command, parameters]] of steps) {
    const started = Date.now()
    console.log(`\n== ${name}`)
    const result = spawnSync(command, parameters, { stdio: 'inherit', cwd: root })
    console.log(
      `== ${name}: ${result.status === 0 ? 'ok' : 'FAILED'} in ${((Date.now() - started) / 1000).toFixed(1)} s`,
    )
    if (result.status !== 0) failed.push(name)
  }
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
