import { type AST, RegExpParser } from '@eslint-community/regexpp'
import { type CodeRange, complement, intersection, union } from './code-points.js'
import { choice, type Expression, repeat, sequence } from './expression.js'
import { GrammarError } from './grammar-error.js'

const DIGITS: readonly CodeRange[] = [[0x30, 0x39]]
const WORD: readonly CodeRange[] = [...DIGITS, [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]]
/** White space and line ends of ECMAScript. */
const SPACE: readonly CodeRange[] = union(
  [0x20, 0xa0, 0x1680, 0x202f, 0x205f, 0x3000, 0xfeff, 0x2028, 0x2029]
    .map((code): CodeRange => [code, code])
    .concat([
      [0x09, 0x0d],
      [0x2000, 0x200a],
    ]),
)
const LINE_ENDS: readonly CodeRange[] = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
]
const MAX_REPEATS = 10_000

/** Every character. */
export const ANYTHING: readonly CodeRange[] = complement([])

/**
 * A regular expression of ECMAScript as the whole texts that match it: anchors may stand at the ends only. Every character
 * is one of `alphabet`. Throws GrammarError for what is no regular expression, or no regular language.
 */
export function patternExpression(pattern: string, alphabet = ANYTHING): Expression {
  const parsed = parse(pattern)
  return alternatives(parsed, { pattern, alphabet, first: true, last: true })
}

/** As the flag u reads it, with needless escapes and brackets that open nothing. */
function parse(pattern: string): AST.Pattern {
  const parser = new RegExpParser({ ecmaVersion: 2024 })
  const strict = withoutSlips(pattern)
  try {
    return parser.parsePattern(strict, 0, strict.length, { unicode: true })
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    throw fault(pattern, error.message.replace(/^Invalid regular expression: .*\/\w*: /s, ''))
  }
}

/** Escapes of one character or of a name, braces of a repeat, and brackets. */
const TOKENS = /\\[upP]\{[^}]*\}|\\.|\{(?:\d+,?\d*|,\d+)\}|[[\]{}]/gsu
const NEEDLESS = /^\\[^A-Za-z0-9^$\\.*+?()[\]{}|/]$/u

/** The flag u wants every bracket to be escaped, and nothing else; Python and others do not. */
function withoutSlips(pattern: string): string {
  let isInClass = false
  return pattern.replace(TOKENS, (token) => {
    const isStray = token === '{' || token === '}' || (token === ']' && !isInClass)
    if (token === '[') isInClass = true
    if (token === ']') isInClass = false
    if (!isStray && !NEEDLESS.test(token)) return token
    return `\\u{${token.codePointAt(isStray ? 0 : 1)?.toString(16) ?? ''}}`
  })
}

interface Place {
  pattern: string
  alphabet: readonly CodeRange[]
  /** Nothing can stand before, or behind. */
  first: boolean
  last: boolean
}

function alternatives({ alternatives: all }: { alternatives: readonly AST.Alternative[] }, place: Place): Expression {
  return choice(...all.map(({ elements }) => elementsOf(elements, place)))
}

function elementsOf(elements: readonly AST.Element[], place: Place): Expression {
  const begin = elements.findIndex((element) => !isAnchor(element))
  const end = elements.findLastIndex((element) => !isAnchor(element))
  const items = elements.map((element, i) => {
    const first = place.first && (begin < 0 || i <= begin)
    const last = place.last && i >= end
    return elementOf(element, { ...place, first, last })
  })
  return sequence(...items)
}

function isAnchor({ type }: AST.Element): boolean {
  return type === 'Assertion'
}

function elementOf(element: AST.Element, place: Place): Expression {
  const { pattern, alphabet } = place
  switch (element.type) {
    case 'Assertion': {
      const stands = (element.kind === 'start' && place.first) || (element.kind === 'end' && place.last)
      if (stands) return sequence()
      const isEdge = element.kind === 'start' || element.kind === 'end'
      throw fault(pattern, isEdge ? 'an anchor in the middle is not kept' : `${element.raw} is not kept`)
    }
    case 'Group':
    case 'CapturingGroup':
      return alternatives(element, place)
    case 'Quantifier':
      return quantified(element, place)
    case 'Backreference':
      throw fault(pattern, `${element.raw} is not kept`)
    default: {
      const ranges = intersection(rangesOf(element, pattern), alphabet)
      return { type: 'set', ranges }
    }
  }
}

/** How eager it is does not change what matches. */
function quantified({ element, min, max }: AST.Quantifier, place: Place): Expression {
  if (min > MAX_REPEATS || (max !== Infinity && max > MAX_REPEATS)) {
    throw fault(place.pattern, `more than ${MAX_REPEATS} repeats`)
  }
  const item = elementOf(element, max > 1 ? { ...place, first: false, last: false } : place)
  return repeat(item, min, max)
}

type Characters = Exclude<
  AST.Element,
  AST.Assertion | AST.Group | AST.CapturingGroup | AST.Quantifier | AST.Backreference
>

function rangesOf(
  element: Characters | AST.CharacterClassElement | AST.ClassRangesCharacterClassElement,
  pattern: string,
): readonly CodeRange[] {
  switch (element.type) {
    case 'Character':
      return [[element.value, element.value]]
    case 'CharacterClassRange':
      return [[element.min.value, element.max.value]]
    case 'CharacterClass': {
      const all = union(element.elements.flatMap((one) => rangesOf(one, pattern)))
      return element.negate ? complement(all) : all
    }
    case 'CharacterSet':
      return setOf(element, pattern)
    default:
      throw fault(pattern, `${element.raw} is not kept`)
  }
}

function setOf(element: AST.CharacterSet, pattern: string): readonly CodeRange[] {
  switch (element.kind) {
    case 'any':
      return complement(LINE_ENDS)
    case 'digit':
      return element.negate ? complement(DIGITS) : DIGITS
    case 'word':
      return element.negate ? complement(WORD) : WORD
    case 'space':
      return element.negate ? complement(SPACE) : SPACE
    default:
      throw fault(pattern, `${element.raw} is not kept`)
  }
}

function fault(pattern: string, reason: string): GrammarError {
  return new GrammarError(`the pattern ${JSON.stringify(pattern.slice(0, 100))}: ${reason}`)
}
