import type { SwapSpace } from '../kv/swap-space.js'
import type { StepPlan } from './plan.js'
import type { Sequence } from './sequence.js'
import { prefersSwap } from './swap-choice.js'

/** Shorter steps are decodes: they tell little of what a prefill takes. */
const PREFILL_TOKENS_PER_SEQUENCE = 4
/** An older step counts this much less with every new one. */
const MEMORY = 0.8

/** Keeps the blocks of one variant's preempted sequences in host memory where that costs less than computing them again. */
export class Swapper {
  private prefill = { tokens: 0, seconds: 0 }

  constructor(
    private readonly space: SwapSpace,
    private readonly blockBytes: number,
    private readonly blockSize: number,
  ) {}

  /** A step took so long. */
  observe({ tokens, entries }: StepPlan, deviceMicros: number): void {
    if (tokens < PREFILL_TOKENS_PER_SEQUENCE * entries.length) return
    this.prefill.tokens = this.prefill.tokens * MEMORY + tokens
    this.prefill.seconds = this.prefill.seconds * MEMORY + deviceMicros / 1e6
  }

  /** A running sequence is about to lose its blocks: what steps that have ended computed is kept, if that pays. */
  out(sequence: Sequence): void {
    const { space, blockBytes } = this
    const tokens = Math.min(sequence.settled, sequence.length - 1)
    const blocks = sequence.blocks.slice(0, Math.ceil(tokens / this.blockSize))
    const { tokens: computed, seconds } = this.prefill
    const { copyBytesPerSecond } = space
    const prefillTokensPerSecond = seconds > 0 ? computed / seconds : undefined
    if (!prefersSwap({ tokens, bytes: blocks.length * blockBytes, prefillTokensPerSecond, copyBytesPerSecond })) {
      space.counters.recomputed++
      return
    }
    const host = space.save(blocks, blockBytes)
    if (!host) {
      space.counters.full++
      return
    }
    space.counters.out++
    sequence.swapped = { space, tokens, blocks: host, release: () => space.release(host, blockBytes) }
  }

  /** An admitted sequence has its blocks, the first `computed` tokens of them filled: fills in what was kept. */
  back(sequence: Sequence): void {
    const { swapped } = sequence
    if (swapped?.space === this.space && swapped.tokens > sequence.computed) {
      const first = sequence.computed / this.blockSize
      this.space.restore(
        swapped.blocks.slice(first),
        sequence.blocks.slice(first, swapped.blocks.length),
        this.blockBytes,
      )
      this.space.counters.in++
      sequence.computed = swapped.tokens
      sequence.settled = swapped.tokens
    }
  }
}
