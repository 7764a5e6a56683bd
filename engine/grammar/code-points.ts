/** Sets of characters as sorted ranges of code points, and their bytes in UTF-8. */

/** From `low` to `high`, both included. */
export type CodeRange = readonly [low: number, high: number]

const LAST = 0x10ffff
/** Halves of characters, which UTF-8 does not have. */
const SURROGATES: CodeRange = [0xd800, 0xdfff]

/** Sorted, without overlaps or neighbours. */
export function union(ranges: readonly CodeRange[]): CodeRange[] {
  const out: [number, number][] = []
  for (const [low, high] of ranges.toSorted((a, b) => a[0] - b[0])) {
    const last = out.at(-1)
    if (last && low <= last[1] + 1) last[1] = Math.max(last[1], high)
    else if (low <= high) out.push([low, high])
  }
  return out
}

/** Every other character. */
export function complement(ranges: readonly CodeRange[]): CodeRange[] {
  const out: CodeRange[] = []
  let next = 0
  for (const [low, high] of union([...ranges, SURROGATES])) {
    if (low > next) out.push([next, low - 1])
    next = high + 1
  }
  if (next <= LAST) out.push([next, LAST])
  return out
}

/** What is in both. */
export function intersection(a: readonly CodeRange[], b: readonly CodeRange[]): CodeRange[] {
  return complement([...complement(a), ...complement(b)])
}

/** One byte after another: each from a range. */
export type ByteSequence = readonly CodeRange[]

/** The byte sequences of a set, as few as their ranges allow. */
export function utf8Sequences(ranges: readonly CodeRange[]): ByteSequence[] {
  return intersection(ranges, [[0, LAST]]).flatMap(([low, high]) => Array.from(sequencesOf(low, high)))
}

/** The last code points that 1, 2, 3 and 4 bytes can say. */
const LENGTH_ENDS = [0x7f, 0x7ff, 0xffff, LAST]

/** Splits a range until all its characters differ in whole bytes only (as the Rust crate utf8-ranges does). */
function* sequencesOf(low: number, high: number): Generator<ByteSequence> {
  for (const end of LENGTH_ENDS) {
    if (low <= end && end < high) {
      yield* sequencesOf(low, end)
      yield* sequencesOf(end + 1, high)
      return
    }
  }
  for (let bits = 6; bits <= 18; bits += 6) {
    const mask = 2 ** bits - 1
    if (low <= 0x7f || Math.floor(low / (mask + 1)) === Math.floor(high / (mask + 1))) continue
    if (low % (mask + 1) !== 0) {
      const end = low - (low % (mask + 1)) + mask
      yield* sequencesOf(low, end)
      yield* sequencesOf(end + 1, high)
      return
    }
    if (high % (mask + 1) !== mask) {
      const begin = high - (high % (mask + 1))
      yield* sequencesOf(low, begin - 1)
      yield* sequencesOf(begin, high)
      return
    }
  }
  const [from, to] = [Buffer.from(String.fromCodePoint(low)), Buffer.from(String.fromCodePoint(high))]
  yield Array.from(from, (byte, i): CodeRange => [byte, to[i] ?? byte])
}
