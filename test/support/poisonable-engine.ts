// The real engine, which dies in the step that would work on a sequence with POISON_TOKEN in it, and whose device fails the
// next step once a file LOSE_DEVICE is in TMPDIR.
import { existsSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { StepPlan } from '../../engine/scheduler/plan.js'
import { VariantRunner } from '../../engine/step/runner.js'

/** In no prompt or answer of the tests that is not meant to kill. */
export const POISON_TOKEN = 49_000

/** Name of the file; the step that it fails takes it away. */
export const LOSE_DEVICE = 'lose-device'

function isPoisoned(plan: StepPlan): boolean {
  return plan.entries.some(({ sequence: { tokens, length } }) => tokens.subarray(0, length).includes(POISON_TOKEN))
}

/** What the addon rejects a step with after a CUDA error that sticks to its context. */
const lost = (): Error =>
  Object.assign(new Error('an illegal memory access was encountered'), { code: 'device_failed' })

/** Looks at every step that is issued; only where this file is the program. */
function arm(): void {
  // oxlint-disable-next-line typescript/unbound-method -- the proxy hands the runner on
  VariantRunner.prototype.issue = new Proxy(VariantRunner.prototype.issue, {
    apply(issue, runner: VariantRunner, args: [number]) {
      const step = issue.apply(runner, args)
      if (step && isPoisoned(step.plan)) process.kill(process.pid, 'SIGABRT')
      const signal = join(tmpdir(), LOSE_DEVICE)
      if (!step || !existsSync(signal)) return step
      rmSync(signal)
      return { plan: step.plan, result: step.result.then(() => Promise.reject(lost())) }
    },
  })
}

if (import.meta.filename === process.argv[1]) {
  arm()
  await import('../../engine/main.js')
}
