import { characters, choice, type Expression, repeat, sequence } from './expression.js'

/** Digits behind the point that a number may have beyond those of its bounds. */
const TAIL = 4

/** A decimal digit. */
export const DIGIT = characters([0x30, 0x39])

/** The integers from `low` to `high`, in decimal; undefined where there are none. Both have at most 15 digits. */
export function integerRange(low: number, high: number): Expression | undefined {
  const negative = low < 0 ? magnitudes(Math.max(1, -high), -low) : []
  const parts = [...negative.map((digits) => sequence('-', digits)), ...magnitudes(Math.max(0, low), high)]
  return parts.length === 0 ? undefined : choice(...parts)
}

/**
 * Numbers from `low` to `high`, which are given in units of the last of `decimals` places (at least 1): with at most so
 * many places, or a few more. Undefined where there are none.
 */
export function decimalRange(low: number, high: number, decimals: number): Expression | undefined {
  const parts = decimalParts(low, high, decimals, TAIL)
  return parts.length === 0 ? undefined : choice(...parts)
}

function decimalParts(low: number, high: number, decimals: number, tail: number): Expression[] {
  if (decimals === 0) return [integerRange(low, high) ?? []].flat()
  const negative = low < 0 ? fixed(Math.max(0, -high), -low, decimals, tail) : []
  return [
    ...negative.map((digits) => sequence('-', digits)),
    ...fixed(Math.max(0, low), high, decimals, tail),
    ...decimalParts(Math.ceil(low / 10), Math.floor(high / 10), decimals - 1, 0),
  ]
}

/** Numbers of at least 0 with a point; `tail` digits may follow but behind the largest. */
function fixed(low: number, high: number, decimals: number, tail: number): Expression[] {
  if (low > high) return []
  const digits = String(high).padStart(decimals + 1, '0')
  const below = ranges(low, high - 1, decimals + 1).map((terms) =>
    sequence(...terms.slice(0, -decimals), '.', ...terms.slice(-decimals), repeat(DIGIT, 0, tail)),
  )
  return [...below, sequence(`${digits.slice(0, -decimals)}.${digits.slice(-decimals)}`)]
}

function magnitudes(low: number, high: number): Expression[] {
  return ranges(low, high, 1).map((terms) => sequence(...terms))
}

/** Digit strings from `low` to `high`, of at least `width` digits with zeros in front: each a list of one term a digit. */
function ranges(low: number, high: number, width: number): Expression[][] {
  const out: Expression[][] = []
  for (let from = low; from <= high;) {
    const digits = String(from).padStart(width, '0')
    // The longest run of free last digits that begins here and ends in time.
    let free = 0
    while (free + 1 <= digits.length && from % 10 ** (free + 1) === 0 && from + 10 ** (free + 1) - 1 <= high) free++
    if (free === digits.length) free--
    const step = 10 ** free
    const place = digits.length - free - 1
    const first = Number(digits[place])
    let last = first
    while (last < 9 && from + (last + 1 - first + 1) * step - 1 <= high) last++
    const head = Array.from(digits.slice(0, place), (digit) => digitRange(Number(digit), Number(digit)))
    out.push([...head, digitRange(first, last), ...Array.from({ length: free }, () => DIGIT)])
    from += (last - first + 1) * step
  }
  return out
}

function digitRange(first: number, last: number): Expression {
  return characters([0x30 + first, 0x30 + last])
}
