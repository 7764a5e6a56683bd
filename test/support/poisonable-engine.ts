// The real engine, which dies in the step that would work on a sequence with POISON_TOKEN in it.
import type { StepPlan } from '../../engine/scheduler/plan.js'
import { VariantRunner } from '../../engine/step/runner.js'

/** In no prompt or answer of the tests that is not meant to kill. */
export const POISON_TOKEN = 49_000

function isPoisoned(plan: StepPlan): boolean {
  return plan.entries.some(({ sequence: { tokens, length } }) => tokens.subarray(0, length).includes(POISON_TOKEN))
}

/** Looks at every step that is issued; only where this file is the program. */
function arm(): void {
  // oxlint-disable-next-line typescript/unbound-method -- the proxy hands the runner on
  VariantRunner.prototype.issue = new Proxy(VariantRunner.prototype.issue, {
    apply(issue, runner: VariantRunner, args: [number]) {
      const step = issue.apply(runner, args)
      if (step && isPoisoned(step.plan)) process.kill(process.pid, 'SIGABRT')
      return step
    },
  })
}

if (import.meta.filename === process.argv[1]) {
  arm()
  await import('../../engine/main.js')
}
