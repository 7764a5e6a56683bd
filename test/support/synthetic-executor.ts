import type { SlotState, StepBatch, StepResult } from '../../engine/native.js'
import type { StepExecutor } from '../../engine/step/executor.js'

/** How a synthetic model answers. */
export interface SyntheticOptions {
  /** Steps per second, i.e. tokens per second of every stream; 0 = as fast as the host can. */
  rate: number
  /** Ids to sample from, in turn by position. */
  tokens: readonly number[]
  /** Sampled as the token after `length` output tokens; never when length is 0. */
  stopToken: number
  length: number
}

/** Emits tokens at a set rate and computes nothing: what remains is the cost of everything around the model. */
export class SyntheticExecutor implements StepExecutor {
  private nextAt = 0
  private readonly promptLengths = new Map<number, number>()
  private readonly intervalMs: number

  constructor(private readonly options: SyntheticOptions) {
    this.intervalMs = options.rate > 0 ? 1000 / options.rate : 0
  }

  setSlot(slot: number, state: SlotState): void {
    this.promptLengths.set(slot, state.promptLength)
  }

  giveMasks(): void {
    throw new Error('it makes tokens up as it likes')
  }

  step(batch: StepBatch): Promise<StepResult> {
    const result = this.answer(batch)
    const now = performance.now()
    // A clock that keeps its beat: timers that fire late don't lower the rate.
    this.nextAt = Math.max(now - this.intervalMs, this.nextAt) + this.intervalMs
    const wait = this.nextAt - now
    return new Promise((resolve) => {
      if (wait >= 1) setTimeout(resolve, wait, result)
      else setImmediate(resolve, result)
    })
  }

  private answer(batch: StepBatch): StepResult {
    const rows = batch.rowTokens.length
    const sampled = new Int32Array(rows)
    for (let row = 0; row < rows; row++) {
      const target = batch.rowTargets[row] ?? -1
      sampled[row] = target >= 0 ? target : this.sample(batch, row)
    }
    const top = Math.max(0, ...batch.rowTop)
    return {
      tokens: sampled,
      logprobs: new Float32Array(rows).fill(-1),
      ranks: new Int32Array(rows).fill(1),
      topTokens: new Int32Array(rows * top).fill(-1),
      topLogprobs: new Float32Array(rows * top),
      deviceMicros: 0,
    }
  }

  private sample(batch: StepBatch, row: number): number {
    const { tokens, stopToken, length } = this.options
    const sequence = batch.rowSeqs[row] ?? 0
    const first = batch.firstPositions[sequence] ?? 0
    const position = first + (batch.rowTokens[row] ?? 0) - (batch.seqStarts[sequence] ?? 0)
    const output = position + 1 - (this.promptLengths.get(batch.slots[sequence] ?? -1) ?? 0)
    if (length > 0 && output >= length) return stopToken
    return tokens[position % tokens.length] ?? 0
  }
}
