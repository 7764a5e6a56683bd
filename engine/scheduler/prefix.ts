import { chainHash } from '../kv/block-hash.js'
import type { BlockPool } from '../kv/block-pool.js'
import type { SchedulerLimits } from './limits.js'
import type { Sequence } from './sequence.js'

/** The prefix cache as sequences use it: full blocks by the chained hash of their tokens. */
export class PrefixCache {
  constructor(
    private readonly limits: SchedulerLimits,
    private readonly pool: BlockPool,
  ) {}

  /** Whether a sequence may start on cached blocks: what was not computed has no log probabilities. */
  serves({ submit }: Sequence): boolean {
    return this.limits.prefixCaching && !submit.promptLogprobs
  }

  /** Starts the sequence on the cached blocks of its prefix; the last token is always computed. */
  attach(sequence: Sequence): void {
    if (!this.serves(sequence)) return
    const { blockSize } = this.limits
    const full = Math.floor((sequence.length - 1) / blockSize)
    for (let i = 0; i < full; i++) {
      const block = this.pool.acquireCached(this.hash(sequence, i))
      if (!block) break
      sequence.addBlock(block)
    }
    sequence.published = sequence.blocks.length
    sequence.computed = sequence.blocks.length * blockSize
    sequence.settled = sequence.computed
  }

  /** Offers the full blocks among the first `computed` tokens to others. */
  publish(sequence: Sequence, computed: number): void {
    if (!this.limits.prefixCaching) return
    const full = Math.floor(computed / this.limits.blockSize)
    for (; sequence.published < full; sequence.published++) {
      const block = sequence.blocks[sequence.published]
      if (block) this.pool.publish(block, this.hash(sequence, sequence.published))
    }
  }

  private hash(sequence: Sequence, index: number): string {
    const { hashes } = sequence
    const { blockSize } = this.limits
    for (let i = hashes.length; i <= index; i++) {
      const parent = hashes[i - 1] ?? sequence.rootHash(this.limits.ropeLimit ?? Infinity)
      hashes.push(chainHash(parent, sequence.tokens.subarray(i * blockSize, (i + 1) * blockSize)))
    }
    return hashes[index] ?? ''
  }
}
