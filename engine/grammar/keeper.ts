import { LRUCache } from 'lru-cache'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { grammarRules } from './grammar-rules.js'
import { GrammarError } from './grammar-error.js'
import { Matcher, type Place } from './matcher.js'
import { buildNetwork } from './network.js'
import type { TokenTrie } from './token-trie.js'

/** Bytes of masks that are kept for places that come again. */
const MASK_BYTES = 64 * 2 ** 20

/** A sequence that wants a mask, and its tokens since the last one. */
export interface MaskRequest {
  sequence: number
  tokens: Int32Array
}

/** Masks behind one another; of a request that has a fault all bits are 0. */
export interface MaskAnswer {
  bits: Uint32Array<ArrayBuffer>
  /** By request: the text may end here. */
  ends: boolean[]
  /** Requests whose sequence has left the grammar, with the reason. */
  faults: { index: number; reason: string }[]
}

/** One grammar over one vocabulary, and where each of its sequences stands. */
export class GrammarKeeper {
  private readonly matcher: Matcher
  private readonly places = new Map<number, Place>()
  private readonly masks = new LRUCache<Place, Uint32Array>({
    maxSize: MASK_BYTES,
    sizeCalculation: (mask) => mask.byteLength + 1,
  })

  /** Throws GrammarError for a grammar that is none, or that is not kept. */
  constructor(
    grammar: Grammar,
    private readonly trie: TokenTrie,
  ) {
    this.matcher = new Matcher(buildNetwork(grammarRules(grammar)))
  }

  /** A mask for each sequence behind its new tokens; sequences that are not known begin with all of their output. */
  answer(requests: readonly MaskRequest[]): MaskAnswer {
    const { words } = this.trie
    const answer: MaskAnswer = { bits: new Uint32Array(requests.length * words), ends: [], faults: [] }
    for (const [index, request] of requests.entries()) {
      const place = this.advance(request)
      answer.ends.push(place?.ends ?? false)
      const mask = place && this.maskOf(place)
      if (mask) answer.bits.set(mask, index * words)
      if (!mask) answer.faults.push({ index, reason: 'the text is not one that its grammar allows' })
      else if (!place.ends && mask.every((word) => word === 0)) {
        answer.faults.push({ index, reason: 'no token of the model goes on as the grammar asks' })
      }
    }
    return answer
  }

  /** The sequence has ended. */
  forget(sequence: number): void {
    this.places.delete(sequence)
  }

  private advance({ sequence, tokens }: MaskRequest): Place | undefined {
    let place: Place | null = this.matcher.current(this.places.get(sequence) ?? this.matcher.begin)
    for (const token of tokens) {
      const bytes = this.trie.bytesOf(token)
      place = bytes.length === 0 ? null : this.matcher.read(place, bytes)
      if (!place) return undefined
    }
    this.places.set(sequence, place)
    return place
  }

  private maskOf(place: Place): Uint32Array {
    const known = this.masks.get(place)
    if (known) return known
    const mask = this.trie.mask(this.matcher, place)
    this.masks.set(place, mask)
    return mask
  }
}

/** Says what went wrong to whoever asked. */
export function reasonOf(error: unknown): string {
  if (error instanceof GrammarError) return error.message
  if (error instanceof RangeError) return 'the grammar is too long, or nested too deeply'
  return error instanceof Error ? error.message : String(error)
}
