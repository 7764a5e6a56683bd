import type { Logger } from 'pino'
import type { StepPlan } from '../scheduler/plan.js'
import type { IssuedStep, VariantRunner } from './runner.js'

/** A step that does not come back. */
export class StepHungError extends Error {
  constructor(timeoutMs: number, sequences: number) {
    super(`a step with ${sequences} sequences has made no progress for ${timeoutMs} ms`)
  }
}

/** Told of things only the process can act on. */
export interface StepLoopEvents {
  /** The device is lost; nothing on it can go on. */
  deviceFailed(error: unknown): void
}

/** Dependencies and bounds of a step loop. */
export interface StepLoopOptions {
  /** Milliseconds, monotonic. */
  clock: () => number
  log: Logger
  events: StepLoopEvents
  /** Steps issued at once: 1, or 2 to overlap the host's work with the device's. */
  depth: number
  /** Longest time that the oldest step may take, milliseconds; after it the device counts as lost. */
  stepTimeoutMs: number
}

/** A step with whose it is. */
type RunnerStep = IssuedStep & { runner: VariantRunner }

/**
 * Runs one device: a step of each variant in turn while it has work. With depth 2 a step is issued before the last
 * one's tokens are read, so that the device does not wait for the host. Where a step's tokens have to follow a grammar
 * the device computes it meanwhile up to its logits; what may be sampled is told it once the tokens before are read.
 */
export class StepLoop {
  private readonly runners: VariantRunner[] = []
  private readonly issued: RunnerStep[] = []
  private turn = 0
  private stopping = false
  private wakeIdle: (() => void) | undefined
  private readonly finished: Promise<void>

  constructor(private readonly options: StepLoopOptions) {
    this.finished = this.run()
  }

  add(runner: VariantRunner): void {
    this.runners.push(runner)
    this.wake()
  }

  /** Issues no more steps of a runner; those under way are still read. */
  remove(runner: VariantRunner): void {
    const at = this.runners.indexOf(runner)
    if (at >= 0) this.runners.splice(at, 1)
  }

  /** Looks for work again: something was submitted, resumed or freed. */
  wake(): void {
    this.wakeIdle?.()
    this.wakeIdle = undefined
  }

  /** Resolves when no step is under way any more. Sequences that are left stay where they are. */
  stop(): Promise<void> {
    this.stopping = true
    this.wake()
    return this.finished
  }

  private async run(): Promise<void> {
    while (!this.stopping || this.issued.length > 0) {
      if (this.mayIssue() && this.issueNext()) continue
      const [oldest] = this.issued
      if (!oldest) await this.idle()
      else if (oldest.masked.length > 0) await this.unmask(oldest)
      else await this.settle(oldest)
    }
  }

  /** The oldest step gets its masks: all before it were read. */
  private async unmask(step: RunnerStep): Promise<void> {
    try {
      await step.runner.giveMasks(step, this.options.clock)
    } catch (error) {
      this.options.log.error({ err: error }, 'the masks of a step were refused')
    }
    step.masked = []
  }

  /**
   * Overlap pays behind a decode step, which is short. Behind a prefill it would only make those wait longer that
   * arrive meanwhile.
   */
  private mayIssue(): boolean {
    if (this.stopping) return false
    const last = this.issued.at(-1)
    if (last && last.masked.length > 0) return false
    return !last || (this.issued.length < this.options.depth && last.plan.tokens === last.plan.entries.length)
  }

  private idle(): Promise<void> {
    return new Promise((resolve) => {
      if (this.stopping) resolve()
      else this.wakeIdle = resolve
    })
  }

  /** Issues a step of the next variant in turn that can run one. */
  private issueNext(): boolean {
    const now = this.options.clock()
    for (let i = 0; i < this.runners.length; i++) {
      const runner = this.runners[this.turn++ % this.runners.length]
      const step = runner?.scheduler.size === 0 ? undefined : runner?.issue(now)
      if (!runner || !step) continue
      // A failure before its turn to be awaited must not count as unhandled.
      step.result.catch(() => {})
      this.issued.push({ ...step, runner })
      return true
    }
    return false
  }

  private async settle({ runner, plan, result }: RunnerStep): Promise<void> {
    this.issued.shift()
    const watchdog = setTimeout(() => this.giveUp(plan), this.options.stepTimeoutMs)
    const outcome = await result.then(
      (value) => ({ value }),
      (error: unknown) => ({ error }),
    )
    clearTimeout(watchdog)
    if ('value' in outcome) runner.complete(plan, outcome.value, this.options.clock())
    else this.failStep(runner, plan, outcome.error)
  }

  /** A native call cannot be interrupted: only the end of the process gets the device back. */
  private giveUp({ entries }: StepPlan): void {
    const error = new StepHungError(this.options.stepTimeoutMs, entries.length)
    this.options.events.deviceFailed(error)
  }

  private failStep(runner: VariantRunner, plan: StepPlan, error: unknown): void {
    this.options.log.error({ err: error, sequences: plan.entries.length }, 'step failed')
    runner.fail(
      plan,
      { code: 'engine_failed', message: 'the engine failed in this step', retryAfterMs: 0 },
      this.options.clock(),
    )
    if (isDeviceLost(error)) this.options.events.deviceFailed(error)
  }
}

/** Whether a native error says that its device is lost, or may be. */
export function isDeviceLost(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'device_failed'
}
