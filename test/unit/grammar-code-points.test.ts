import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type ByteSequence,
  type CodeRange,
  complement,
  intersection,
  union,
  utf8Sequences,
} from '../../engine/grammar/code-points.js'

const LAST = 0x10ffff
/** Where encodings change their length or their first bytes. */
const EDGES = [
  0,
  0x7f,
  0x80,
  0x7ff,
  0x800,
  0xfff,
  0x1000,
  0xd7ff,
  0xd800,
  0xdfff,
  0xe000,
  0xffff,
  0x10000,
  0x3ffff,
  LAST,
]

const code = fc.oneof(
  fc.integer({ min: 0, max: LAST }),
  fc.constantFrom(...EDGES).chain((edge) => fc.integer({ min: Math.max(0, edge - 2), max: Math.min(LAST, edge + 2) })),
  fc.integer({ min: 0, max: 0x900 }),
)
const range = fc.tuple(code, code).map(([a, b]): CodeRange => [Math.min(a, b), Math.max(a, b)])
const ranges = fc.array(range, { maxLength: 6 })

const has = (set: readonly CodeRange[], wanted: number): boolean =>
  set.some(([low, high]) => low <= wanted && wanted <= high)
const isSurrogate = (value: number): boolean => value >= 0xd800 && value <= 0xdfff
const matches = (bytes: Uint8Array, sequence: ByteSequence): boolean =>
  bytes.length === sequence.length &&
  sequence.every(([low, high], i) => low <= (bytes[i] ?? -1) && (bytes[i] ?? 256) <= high)

/** Every end of a range, what lies beside it, and some more. */
function samples(set: readonly CodeRange[], more: readonly number[]): number[] {
  const ends = set.flatMap(([low, high]) => [low - 1, low, low + 1, high - 1, high, high + 1, (low + high) >> 1])
  return [...ends, ...EDGES, ...more].filter((value) => value >= 0 && value <= LAST)
}

function isSorted(set: readonly CodeRange[]): boolean {
  return set.every(([low, high], i) => low <= high && low > (set[i - 1]?.[1] ?? -2) + 1)
}

describe('sets of characters', () => {
  it('unite, intersect and complement as sets do', () => {
    fc.assert(
      fc.property(ranges, ranges, fc.array(code, { maxLength: 30 }), (a, b, more) => {
        const [all, both, other] = [union([...a, ...b]), intersection(a, b), complement(a)]
        expect([all, both, other].map(isSorted)).toEqual([true, true, true])
        for (const value of samples([...a, ...b], more)) {
          expect(has(all, value)).toBe(has(a, value) || has(b, value))
          expect(has(both, value)).toBe(has(a, value) && has(b, value) && !isSurrogate(value))
          expect(has(other, value)).toBe(!has(a, value) && !isSurrogate(value))
        }
      }),
      { numRuns: 300 },
    )
  })

  it('keep no surrogates but those of a union', () => {
    fc.assert(
      fc.property(ranges, fc.integer({ min: 0xd800, max: 0xdfff }), (a, half) => {
        expect(has(complement(a), half)).toBe(false)
        expect(has(intersection(a, [[0, LAST]]), half)).toBe(false)
      }),
    )
    expect(complement([])).toEqual([
      [0, 0xd7ff],
      [0xe000, LAST],
    ])
    expect(complement([[0, LAST]])).toEqual([])
  })
})

describe('byte sequences', () => {
  it('are those of the characters, each in one sequence', () => {
    fc.assert(
      fc.property(ranges, fc.array(code, { maxLength: 50 }), (set, more) => {
        const sequences = utf8Sequences(set)
        for (const value of samples(set, more)) {
          if (isSurrogate(value)) continue
          const bytes = Buffer.from(String.fromCodePoint(value))
          expect(sequences.filter((one) => matches(bytes, one)).length).toBe(has(set, value) ? 1 : 0)
        }
      }),
      { numRuns: 300 },
    )
  })

  it('hold as many texts as there are characters, so nothing else', () => {
    fc.assert(
      fc.property(ranges, (set) => {
        const size = (all: readonly CodeRange[]): number => all.reduce((sum, [low, high]) => sum + high - low + 1, 0)
        const texts = utf8Sequences(set)
          .map((one) => one.reduce((product, [low, high]) => product * (high - low + 1), 1))
          .reduce((sum, count) => sum + count, 0)
        expect(texts).toBe(size(intersection(set, [[0, LAST]])))
      }),
      { numRuns: 300 },
    )
  })

  it('hold every character of all', () => {
    const sequences = utf8Sequences([[0, LAST]])
    expect(sequences.length).toBe(9)
    const missing: number[] = []
    for (let value = 0; value <= LAST; value += value < 0x3000 ? 1 : 37) {
      if (isSurrogate(value)) continue
      const bytes = Buffer.from(String.fromCodePoint(value))
      if (sequences.filter((one) => matches(bytes, one)).length !== 1) missing.push(value)
    }
    expect(missing).toEqual([])
  })

  it.each([
    ['halves of characters', [0xd800, 0xdfff]],
    ['a range from more to less', [0x62, 0x61]],
  ] as const)('there are none of %s', (_, one) => {
    expect(utf8Sequences([one])).toEqual([])
  })
})
