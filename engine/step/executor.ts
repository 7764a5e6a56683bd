import type { SlotState, StepBatch, StepResult } from '../native.js'

/**
 * What the scheduler needs of a resident variant; a NativeModel is one. Steps of all variants of a device run in
 * the order of the calls, and the arrays given are copied before a call returns.
 */
export interface StepExecutor {
  /** Starts a sequence's sampling state in a slot, ordered with the steps around it. */
  setSlot(slot: number, state: SlotState): void
  /** Runs one batch; rejects with a NativeError (`device_failed`: the device is lost). */
  step(batch: StepBatch): Promise<StepResult>
  /** The masks of the step begun last, where it names some; to be called once, before any other call. */
  giveMasks(masks: Uint32Array): void
}
