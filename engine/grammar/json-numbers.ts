import { characters, choice, type Expression, literal, optional, repeat, sequence } from './expression.js'
import { GrammarError } from './grammar-error.js'
import { decimalRange, DIGIT, integerRange } from './number-range.js'

const WHOLE = choice(literal('0'), sequence(characters([0x31, 0x39]), repeat(DIGIT, 0, 14)))
const FRACTION = sequence('.', repeat(DIGIT, 1, 16))
const EXPONENT = sequence(
  choice(literal('e'), literal('E')),
  optional(choice(literal('+'), literal('-'))),
  repeat(DIGIT, 1, 2),
)

/** Integers without bounds, of no more digits than a double keeps. */
export const ANY_INTEGER = sequence(optional(literal('-')), WHOLE)
/** Numbers of JSON, of no more digits than a double keeps. */
export const ANY_NUMBER = sequence(ANY_INTEGER, optional(FRACTION), optional(EXPONENT))

/** The largest number of whole digits that JavaScript's numbers tell apart. */
const LARGEST = 999_999_999_999_999
const MAX_DECIMALS = 6
/** Places that a number has where a bound of it is not among its values. */
const OPEN_DECIMALS = 2

/** JSON Schema's bounds of a number, as they are given. */
export interface Bounds {
  minimum?: number
  maximum?: number
  exclusiveMinimum?: number
  exclusiveMaximum?: number
}

/** The integers, or numbers with a few decimal places, between bounds. Throws GrammarError. */
export function boundedNumber(bounds: Bounds, integer: boolean): Expression {
  const given = Object.values(bounds)
  const decimals = integer ? 0 : decimalsOf(given, bounds)
  const unit = 10 ** decimals
  // Decimals are no doubles: a product of them may be a hair beside the whole number that it stands for.
  const scaled = (value: number): number => (integer ? value : Math.round(value * unit))
  const { minimum = -Infinity, maximum = Infinity, exclusiveMinimum = -Infinity, exclusiveMaximum = Infinity } = bounds
  const low = Math.max(Math.ceil(scaled(minimum)), Math.floor(scaled(exclusiveMinimum)) + 1, -LARGEST)
  const high = Math.min(Math.floor(scaled(maximum)), Math.ceil(scaled(exclusiveMaximum)) - 1, LARGEST)
  if (Math.max(...given.map(Math.abs)) * unit > LARGEST) throw new GrammarError('a bound has more than 15 digits')
  const range = integer ? integerRange(low, high) : decimalRange(low, high, decimals)
  if (range === undefined) throw new GrammarError('nothing lies between its bounds')
  return range
}

function decimalsOf(given: readonly number[], { exclusiveMinimum, exclusiveMaximum }: Bounds): number {
  const open = exclusiveMinimum !== undefined || exclusiveMaximum !== undefined
  const least = open ? OPEN_DECIMALS : 1
  for (let decimals = least; decimals <= MAX_DECIMALS; decimals++) {
    if (given.every((value) => Number(value.toFixed(decimals)) === value)) return decimals
  }
  throw new GrammarError(`a bound has more than ${MAX_DECIMALS} decimal places`)
}
