import type { SequenceError } from '../../proto/gen/edgeshift/v1/engine.js'
import type { StepResult } from '../native.js'
import type { StepPlan } from '../scheduler/plan.js'
import type { Scheduler } from '../scheduler/scheduler.js'
import { BatchBuilder, slotState } from './batch.js'
import type { StepExecutor } from './executor.js'

/** A step given to the device and not read yet. */
export interface IssuedStep {
  plan: StepPlan
  result: Promise<StepResult>
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
    return { plan, result: this.start(plan) }
  }

  complete(plan: StepPlan, result: StepResult, now: number): void {
    this.deviceMicros += result.deviceMicros
    this.scheduler.complete(plan, result, now)
  }

  fail(plan: StepPlan, error: SequenceError, now: number): void {
    this.scheduler.fail(plan, error, now)
  }

  /** Async, so that what the executor throws synchronously also becomes a failed step. */
  private async start(plan: StepPlan): Promise<StepResult> {
    for (const sequence of plan.admitted) this.executor.setSlot(sequence.slot, slotState(sequence))
    return this.executor.step(this.builder.build(plan))
  }
}
