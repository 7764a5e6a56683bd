// `npm start` and `npm test`: set up what is missing, then serve or check.
import { setUp } from './setup.mjs'

const [command, ...rest] = process.argv.slice(2)
if (command === 'serve') {
  setUp()
  // In this process: one process fewer to signal, and signals reach the gateway itself.
  process.argv = [process.argv[0], 'edgeshift', 'serve', ...rest]
  await import('../dist/cli.js')
} else if (command === 'test') {
  setUp({ tests: true })
  const { check } = await import('./check.mjs')
  check(rest)
} else {
  console.error('usage: node scripts/run.mjs serve [--config FILE] | test [vitest arguments]')
  process.exit(2)
}
