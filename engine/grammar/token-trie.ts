import type { Matcher, Place } from './matcher.js'

/** Longest token, bytes. */
const MAX_DEPTH = 1024

/**
 * A vocabulary as a tree of bytes, flattened in depth-first order: a place's mask is one walk over it that leaves out what
 * lies behind a byte that cannot come.
 */
export class TokenTrie {
  /** Words of a mask. */
  readonly words: number
  private readonly bytes: Uint8Array
  private readonly depths: Uint16Array
  /** Where the walk goes on when a node's byte cannot come. */
  private readonly skips: Int32Array
  /** The token that ends in a node, or -1. */
  private readonly tokens: Int32Array
  /** Tokens of the same bytes as another, by that one. */
  private readonly twins = new Map<number, number[]>()

  /** By id; tokens without bytes are never allowed. */
  constructor(private readonly vocabulary: readonly (Uint8Array | undefined)[]) {
    this.words = Math.ceil(vocabulary.length / 32)
    const ids = this.sorted()
    const size = ids.reduce((sum, id, i) => sum + this.bytesOf(id).length - this.shared(ids[i - 1], id), 0)
    this.bytes = new Uint8Array(size)
    this.depths = new Uint16Array(size)
    this.skips = new Int32Array(size)
    this.tokens = new Int32Array(size).fill(-1)
    this.fill(ids)
  }

  /** The bytes of a token; none where it is not text. */
  bytesOf(id: number): Uint8Array {
    return this.vocabulary[id] ?? NO_BYTES
  }

  /** Bit t % 32 of word t / 32: the place lets token t come. */
  mask(matcher: Matcher, from: Place): Uint32Array {
    const mask = new Uint32Array(this.words)
    const { bytes, depths, skips, tokens } = this
    const { classOf } = matcher
    const size = bytes.length
    const places: Place[] = [from]
    for (let node = 0; node < size;) {
      const depth = depths[node] ?? 0
      const byte = bytes[node] ?? 0
      const before = places[depth] ?? from
      let place = before.next[classOf[byte] ?? 0]
      if (place === undefined) place = matcher.step(before, byte)
      if (place === null) {
        node = skips[node] ?? size
        continue
      }
      places[depth + 1] = place
      const token = tokens[node] ?? -1
      if (token >= 0) this.allow(mask, token)
      node++
    }
    return mask
  }

  private allow(mask: Uint32Array, token: number): void {
    setBit(mask, token)
    if (this.twins.size > 0) for (const twin of this.twins.get(token) ?? []) setBit(mask, twin)
  }

  private fill(ids: readonly number[]): void {
    /** The node of each depth that the walk is in. */
    const path: number[] = []
    let next = 0
    const leave = (depth: number): void => {
      while (path.length > depth) this.skips[path.pop() ?? 0] = next
    }
    for (const [i, id] of ids.entries()) {
      const own = this.bytesOf(id)
      const before = ids[i - 1]
      const common = this.shared(before, id)
      leave(common)
      for (let depth = common; depth < own.length; depth++) {
        this.bytes[next] = own[depth] ?? 0
        this.depths[next] = depth
        path.push(next++)
      }
      const last = path.at(-1) ?? 0
      const known = this.tokens[last] ?? -1
      if (known < 0) this.tokens[last] = id
      else this.twins.set(known, [...(this.twins.get(known) ?? []), id])
    }
    leave(0)
  }

  /** Tokens that are text, by their bytes. */
  private sorted(): number[] {
    const named = [...this.vocabulary.keys()]
      .filter((id) => isText(this.vocabulary[id]))
      .map((id) => ({ id, text: Buffer.from(this.bytesOf(id)).toString('latin1') }))
    // By code units, i.e. by bytes.
    named.sort((a, b) => (a.text < b.text ? -1 : a.text > b.text ? 1 : a.id - b.id))
    return named.map(({ id }) => id)
  }

  /** Bytes that two tokens begin with alike. */
  private shared(a: number | undefined, b: number): number {
    if (a === undefined) return 0
    const [left, right] = [this.bytesOf(a), this.bytesOf(b)]
    let length = 0
    while (length < left.length && left[length] === right[length]) length++
    return length
  }
}

const NO_BYTES = new Uint8Array()

function isText(bytes: Uint8Array | undefined): boolean {
  return bytes !== undefined && bytes.length > 0 && bytes.length <= MAX_DEPTH
}

/** Whether a mask lets a token come, from here on. */
export function setBit(mask: Uint32Array, token: number, allowed = true): void {
  const bit = 1 << (token & 31)
  const word = mask[token >> 5] ?? 0
  mask[token >> 5] = allowed ? word | bit : word & ~bit
}
