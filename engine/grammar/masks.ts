import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import type { PlanEntry } from '../scheduler/plan.js'
import type { Sequence } from '../scheduler/sequence.js'
import type { GrammarHome } from './grammar-home.js'
import { setBit } from './token-trie.js'

/** Where a sequence stands in its grammar. */
export interface GrammarState {
  readonly home: Pick<GrammarHome, 'masks'>
  /** Words of a mask. */
  readonly words: number
  /** Tokens of the output that the home knows. */
  accepted: number
}

interface Wanted {
  /** Place of its mask in the step. */
  place: number
  sequence: Sequence
  grammar: GrammarState
}

/**
 * The masks of a step's entries that have a grammar, in their order, once all earlier steps were read. Where a grammar
 * fails its sequences end with the reason; of those, and of what ended meanwhile, every token is allowed: nobody reads it.
 */
export async function collectMasks(entries: readonly PlanEntry[], now: () => number): Promise<Uint32Array> {
  const words = entries[0]?.sequence.grammar?.words ?? 0
  const masks = new Uint32Array(entries.length * words).fill(-1)
  const wanting = entries.flatMap(wanted)
  const homes = new Set(wanting.map(({ grammar }) => grammar.home))
  const of = (home: GrammarState['home']): Wanted[] => wanting.filter(({ grammar }) => grammar.home === home)
  await Promise.all(Array.from(homes, (home) => fill(masks, words, home, of(home), now)))
  return masks
}

function wanted({ sequence, epoch }: PlanEntry, place: number): Wanted[] {
  const { grammar } = sequence
  const gone = sequence.state !== 'running' || sequence.epoch !== epoch
  return grammar === undefined || gone ? [] : [{ place, sequence, grammar }]
}

async function fill(
  masks: Uint32Array,
  words: number,
  home: GrammarState['home'],
  wanting: readonly Wanted[],
  now: () => number,
): Promise<void> {
  const requests = wanting.map(({ sequence, grammar }) => {
    const from = sequence.promptLength + grammar.accepted
    grammar.accepted = sequence.length - sequence.promptLength
    return { sequence: sequence.arrival, tokens: sequence.tokens.slice(from, sequence.length) }
  })
  try {
    const { bits, ends, faults } = await home.masks(requests)
    for (const [index, { place, sequence }] of wanting.entries()) {
      const mask = masks.subarray(place * words, (place + 1) * words)
      mask.set(bits.subarray(index * words, (index + 1) * words))
      for (const token of sequence.stopTokens) setBit(mask, token, ends[index] ?? false)
    }
    for (const { index, reason } of faults) {
      const faulty = wanting[index]
      if (faulty) refuse(faulty.sequence, reason, now())
    }
  } catch (error) {
    for (const { sequence } of wanting) refuse(sequence, error instanceof Error ? error.message : String(error), now())
  }
}

function refuse(sequence: Sequence, message: string, now: number): void {
  sequence.holder?.end(sequence, FinishReason.REJECTED, now, { code: 'invalid_request', message, retryAfterMs: 0 })
}
