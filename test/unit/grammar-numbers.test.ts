import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Expression } from '../../engine/grammar/expression.js'
import { type Bounds, ANY_INTEGER, ANY_NUMBER, boundedNumber } from '../../engine/grammar/json-numbers.js'
import { Matcher } from '../../engine/grammar/matcher.js'
import { buildNetwork } from '../../engine/grammar/network.js'
import { decimalRange, integerRange } from '../../engine/grammar/number-range.js'

const LARGEST = 999_999_999_999_999

function acceptor(expression: Expression | undefined): (text: string) => boolean {
  if (!expression) return () => false
  const matcher = new Matcher(buildNetwork(new Map([['root', expression]])))
  return (text) => matcher.read(matcher.begin, Buffer.from(text))?.ends === true
}

function within(value: number, bounds: Bounds): boolean {
  const { minimum = -Infinity, maximum = Infinity, exclusiveMinimum = -Infinity, exclusiveMaximum = Infinity } = bounds
  return value >= minimum && value <= maximum && value > exclusiveMinimum && value < exclusiveMaximum
}

/** Undefined where nothing lies between them. */
function bounded(bounds: Bounds, integer: boolean): ((text: string) => boolean) | undefined {
  try {
    return acceptor(boundedNumber(bounds, integer))
  } catch (error) {
    if (/nothing lies between/.test(String(error))) return undefined
    throw error
  }
}

const optional = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined })
const given = (bound: fc.Arbitrary<number>): fc.Arbitrary<Bounds> =>
  fc
    .record({
      minimum: optional(bound),
      maximum: optional(bound),
      exclusiveMinimum: optional(bound),
      exclusiveMaximum: optional(bound),
    })
    .map((bounds): Bounds => JSON.parse(JSON.stringify(bounds)) as Bounds)
    .filter((bounds) => Object.keys(bounds).length > 0)

/** Whole numbers around 0. */
function upTo(end: number): number[] {
  return Array.from({ length: 2 * end + 1 }, (_, i) => i - end)
}

/** Texts that are near to numbers: with zeros in front, signs, points at the ends. */
const NO_NUMBERS = ['', '-', '+1', '01', '-01', '00', '1.', '.5', '-.5', '1e2', '0x1', ' 1', '1 ', '--1', '1..2', '1,5']
const few = { numRuns: 150 }

describe('a range of integers', () => {
  it('holds what lies in it and nothing else', () => {
    const end = fc.oneof(
      fc.integer({ min: -120, max: 1200 }),
      fc.constantFrom(-100, -10, -9, -1, 0, 1, 9, 10, 99, 100, 999),
    )
    fc.assert(
      fc.property(end, end, (low, high) => {
        const accepts = acceptor(integerRange(low, high))
        const wrong = upTo(1300).filter((value) => accepts(String(value)) !== (low <= value && value <= high))
        expect(wrong).toEqual([])
        expect([...NO_NUMBERS, '-0', '0.0', '1.0'].filter((text) => accepts(text))).toEqual([])
      }),
      few,
    )
  })

  it('holds them up to 15 digits', () => {
    const end = fc
      .oneof(fc.maxSafeInteger(), fc.constantFrom(-1e14, 1e14, 10 ** 12 - 1, 0, -1))
      .map((n) => n % (LARGEST + 1))
    fc.assert(
      fc.property(end, end, fc.array(end, { maxLength: 20 }), (low, high, more) => {
        const accepts = acceptor(integerRange(low, high))
        for (const value of [low - 1, low, low + 1, high - 1, high, high + 1, (low + high) / 2, ...more].map(
          Math.trunc,
        )) {
          expect(accepts(String(value))).toBe(low <= value && value <= high)
        }
      }),
      few,
    )
    expect(acceptor(integerRange(-LARGEST, LARGEST))('999999999999999')).toBe(true)
    expect(acceptor(integerRange(-LARGEST, LARGEST))('-1000000000000000')).toBe(false)
  })
})

describe('a range of decimals', () => {
  it('holds what lies in it with so many places, or fewer, and nothing else', () => {
    const end = fc.integer({ min: -350, max: 1300 })
    fc.assert(
      fc.property(end, end, fc.integer({ min: 1, max: 3 }), (low, high, decimals) => {
        const accepts = acceptor(decimalRange(low, high, decimals))
        const wrong = upTo(1400).flatMap((units) =>
          Array.from({ length: decimals + 1 }, (_, places) => ({
            text: (units / 10 ** places).toFixed(places),
            scaled: units * 10 ** (decimals - places),
          })).filter(({ text, scaled }) => accepts(text) !== (low <= scaled && scaled <= high)),
        )
        expect(wrong).toEqual([])
        expect(NO_NUMBERS.filter((text) => accepts(text))).toEqual([])
      }),
      { numRuns: 60 },
    )
  })

  it('holds more places where they stay in it', () => {
    const accepts = acceptor(decimalRange(-25, 150, 1))
    expect(['0.12345', '-2.49999', '14.9', '14.8999', '15.0', '-2.5', '-0.0'].filter((text) => !accepts(text))).toEqual(
      [],
    )
    expect(['15.01', '-2.51', '0.123456', '15.1', '-2.50001'].filter((text) => accepts(text))).toEqual([])
  })
})

describe('bounds', () => {
  const whole = fc.oneof(
    fc.integer({ min: -60, max: 300 }),
    fc.integer({ min: -600, max: 600 }).map((n) => n / 10),
  )

  it('of integers are kept exactly', () => {
    fc.assert(
      fc.property(given(whole), (bounds) => {
        const accepts = bounded(bounds, true)
        const wrong = upTo(700).filter((value) => (accepts?.(String(value)) ?? false) !== within(value, bounds))
        expect(wrong).toEqual([])
      }),
      few,
    )
  })

  it.each([
    [{ minimum: 1.000_000_1 }, ['2'], ['1']],
    [{ exclusiveMinimum: 0.999_999_9 }, ['1'], ['0']],
    [{ maximum: 1.999_999_9 }, ['1', '-5'], ['2']],
    [{ exclusiveMaximum: 2.000_000_1 }, ['2'], ['3']],
    [{ minimum: 0 }, ['0', '7', '999999999999999'], ['-1', '-0', '1000000000000000']],
    [{ exclusiveMaximum: 0 }, ['-1', '-999999999999999'], ['0', '-0', '1']],
    [{ minimum: -LARGEST, maximum: LARGEST }, ['-999999999999999'], ['1000000000000000']],
  ] as const)('of integers: %j', (bounds, yes, no) => {
    const accepts = acceptor(boundedNumber(bounds, true))
    expect(yes.filter((text) => !accepts(text))).toEqual([])
    expect(no.filter((text) => accepts(text))).toEqual([])
  })

  it('of numbers are kept by every text', () => {
    const bound = fc.oneof(
      whole,
      fc.integer({ min: -2_000_000, max: 2_000_000 }).map((n) => n / 1000),
    )
    const digits = fc.tuple(fc.integer({ min: -2500, max: 2500 }), fc.integer({ min: 0, max: 8 }), fc.nat(99_999_999))
    fc.assert(
      fc.property(given(bound), fc.array(digits, { maxLength: 60 }), (bounds, more) => {
        const accepts = bounded(bounds, false)
        const places = Object.values(bounds).map((value) => (String(value).split('.')[1] ?? '').length)
        const open = bounds.exclusiveMinimum !== undefined || bounds.exclusiveMaximum !== undefined
        const kept = Math.max(open ? 2 : 1, ...places)
        const near = Object.values(bounds).flatMap((value) => {
          const steps = [-11, -10, -1, 0, 1, 10, 11].map((step) => value + step / 10 ** kept)
          return steps.map((one) => one.toFixed(kept))
        })
        const drawn = more.map(
          ([ints, length, fraction]) =>
            `${ints}.${String(fraction)
              .padStart(8, '0')
              .slice(0, length + 1)}`,
        )
        const texts = [...near, ...drawn, ...drawn.map((one) => one.split('.')[0] ?? ''), '-0', '0', '-0.0']
        const wrong = texts.filter((text) => {
          const isIn = within(Number(text), bounds)
          const isShort = (text.split('.')[1] ?? '').length <= kept
          const mustBe = isIn && isShort && (Number(text) !== 0 || !text.startsWith('-'))
          return accepts?.(text) ? !isIn : mustBe
        })
        expect(wrong).toEqual([])
      }),
      few,
    )
  })

  it.each([
    [{ minimum: 2, maximum: 1 }, true, 'nothing lies between its bounds'],
    [{ exclusiveMinimum: 1, exclusiveMaximum: 2 }, true, 'nothing lies between its bounds'],
    [{ minimum: 0.2, maximum: 0.8 }, true, 'nothing lies between its bounds'],
    [{ minimum: 0.8, maximum: 0.2 }, false, 'nothing lies between its bounds'],
    [{ exclusiveMinimum: 0.5, maximum: 0.5 }, false, 'nothing lies between its bounds'],
    [{ minimum: 1e15 }, true, 'a bound has more than 15 digits'],
    [{ maximum: -1e300 }, true, 'a bound has more than 15 digits'],
    [{ maximum: 123_456_789_012_345 }, false, 'a bound has more than 15 digits'],
    [{ minimum: 0.000_000_1 }, false, 'a bound has more than 6 decimal places'],
    [{ maximum: 1 / 3 }, false, 'a bound has more than 6 decimal places'],
  ] as const)('%j (of integers: %s) are refused', (bounds, integer, reason) => {
    expect(() => boundedNumber(bounds, integer)).toThrow(reason)
  })
})

describe('numbers without bounds', () => {
  it.each([
    ['integers', ANY_INTEGER, ['0', '-0', '10', '-999999999999999'], ['1.0', '1e2', '1000000000000000']],
    ['numbers', ANY_NUMBER, ['0', '-0', '0.5', '-1.25e-7', '1E+20', '10e5'], ['1e', '1e100', '1.12345678901234567']],
  ])('%s', (_, expression, yes, no) => {
    const accepts = acceptor(expression)
    expect(yes.filter((text) => !accepts(text))).toEqual([])
    expect([...no, ...NO_NUMBERS.filter((text) => text !== '1e2')].filter((text) => accepts(text))).toEqual([])
  })
})
