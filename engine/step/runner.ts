import type { SequenceError } from '../../proto/gen/edgeshift/v1/engine.js'
import { collectMasks } from '../grammar/masks.js'
import type { StepResult } from '../native.js'
import type { PlanEntry, StepPlan } from '../scheduler/plan.js'
import type { Scheduler } from '../scheduler/scheduler.js'
import { BatchBuilder, isMasked, slotState } from './batch.js'
import type { StepExecutor } from './executor.js'

/** A step given to the device and not read yet. */
export interface IssuedStep {
  plan: StepPlan
  result: Promise<StepResult>
  /** Entries whose masks it waits for; no other step may be issued before it has them. */
  masked: readonly PlanEntry[]
}

/** Joins a variant's scheduler (policy) with its executor (effects). */
export class VariantRunner {
  /** Device time of all steps, microseconds. */
  deviceMicros = 0
  private readonly builder: BatchBuilder

  constructor(
    readonly scheduler: Scheduler,
    private readonly executor: StepExecutor,
  ) {
    this.builder = new BatchBuilder(scheduler.limits.blockSize)
  }

  /** Plans and starts a step; undefined when nothing can run. */
  issue(now: number): IssuedStep | undefined {
    const plan = this.scheduler.plan(now)
    if (!plan) return undefined
    const { entries } = plan
    try {
      for (const sequence of plan.admitted) this.executor.setSlot(sequence.slot, slotState(sequence))
      return { plan, result: this.executor.step(this.builder.build(plan)), masked: entries.filter(isMasked) }
    } catch (error) {
      // What the executor throws is a failed step, too.
      return { plan, result: Promise.reject(toError(error)), masked: [] }
    }
  }

  /** Gives a step the masks that it waits for, once those before it were read. */
  async giveMasks({ masked }: IssuedStep, clock: () => number): Promise<void> {
    this.executor.giveMasks(await collectMasks(masked, clock))
  }

  complete(plan: StepPlan, result: StepResult, now: number): void {
    this.deviceMicros += result.deviceMicros
    this.scheduler.complete(plan, result, now)
  }

  fail(plan: StepPlan, error: SequenceError, now: number): void {
    this.scheduler.fail(plan, error, now)
  }
}

function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}
