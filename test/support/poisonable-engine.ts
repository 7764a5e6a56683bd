// The real engine, which dies in the step that would work on a sequence with POISON_TOKEN in it, and whose device fails the
// next step once a file LOSE_DEVICE is in TMPDIR, and never ends it once there is a file HANG.
import { existsSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { StepPlan } from '../../engine/scheduler/plan.js'
import { VariantRunner } from '../../engine/step/runner.js'

/** In no prompt or answer of the tests that is not meant to kill. */
export const POISON_TOKEN = 49_000

/** Names of the files; the step that one is for takes it away. */
export const LOSE_DEVICE = 'lose-device'
export const HANG = 'hang'

function isPoisoned(plan: StepPlan): boolean {
  return plan.entries.some(({ sequence: { tokens, length } }) => tokens.subarray(0, length).includes(POISON_TOKEN))
}

/** What the addon rejects a step with after a CUDA error that sticks to its context. */
const lost = (): Error =>
  Object.assign(new Error('an illegal memory access was encountered'), { code: 'device_failed' })

/** Whether the file is there; only once. */
function isAsked(name: string): boolean {
  const file = join(tmpdir(), name)
  if (!existsSync(file)) return false
  rmSync(file)
  return true
}

/** Looks at every step that is issued; only where this file is the program. */
function arm(): void {
  // oxlint-disable-next-line typescript/unbound-method -- the proxy hands the runner on
  VariantRunner.prototype.issue = new Proxy(VariantRunner.prototype.issue, {
    apply(issue, runner: VariantRunner, args: [number]) {
      const step = issue.apply(runner, args)
      if (step && isPoisoned(step.plan)) process.kill(process.pid, 'SIGABRT')
      if (step && isAsked(HANG)) return { ...step, result: new Promise<never>(() => {}) }
      if (!step || !isAsked(LOSE_DEVICE)) return step
      return { ...step, result: step.result.then(() => Promise.reject(lost())) }
    },
  })
}

if (import.meta.filename === process.argv[1]) {
  arm()
  await import('../../engine/main.js')
}
