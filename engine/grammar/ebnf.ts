import type { CodeRange } from './code-points.js'
import { complement } from './code-points.js'
import { choice, EMPTY, type Expression, type GrammarRules, literal, repeat, rule, sequence } from './expression.js'
import { GrammarError } from './grammar-error.js'

const NAME = /\w[\w-]*/y
const MAX_REPEATS = 10_000
const MAX_NESTING = 200

/**
 * Rules in EBNF as llama.cpp (GBNF) and vLLM write them: `name ::= ...`, "literals", [classes], ( ), |, *, +, ?, {m,n}, `.`
 * and # comments. A rule ends where the next one begins. Throws GrammarError with the line.
 */
export function parseEbnf(text: string): GrammarRules {
  return new EbnfReader(text).read()
}

class EbnfReader {
  private at = 0
  private nesting = 0

  constructor(private readonly text: string) {}

  read(): GrammarRules {
    const rules: GrammarRules = new Map()
    for (this.skip(); this.at < this.text.length; this.skip()) {
      const name = this.name()
      if (name === undefined) throw this.fault('a rule must begin with its name')
      this.skip()
      if (!this.take('::=')) throw this.fault(`::= must follow the name ${name}`)
      if (rules.has(name)) throw this.fault(`there is a rule ${name} already`)
      rules.set(name, this.alternatives())
      if (this.peek() === ')') throw this.fault('a parenthesis that was not opened')
    }
    if (!rules.has('root')) throw new GrammarError('the grammar has no rule root')
    return rules
  }

  private fault(reason: string): GrammarError {
    const before = this.text.slice(0, this.at).split('\n')
    return new GrammarError(
      `line ${before.length}, column ${(before.at(-1)?.length ?? 0) + 1} of the grammar: ${reason}`,
    )
  }

  private peek(): string | undefined {
    return this.text[this.at]
  }

  private take(token: string): boolean {
    if (!this.text.startsWith(token, this.at)) return false
    this.at += token.length
    return true
  }

  /** White space and comments. */
  private skip(): void {
    const blank = /(?:\s|#[^\n]*)*/y
    blank.lastIndex = this.at
    this.at += blank.exec(this.text)?.[0].length ?? 0
  }

  private name(): string | undefined {
    NAME.lastIndex = this.at
    const [name] = NAME.exec(this.text) ?? []
    this.at += name?.length ?? 0
    return name
  }

  private alternatives(): Expression {
    if (++this.nesting > MAX_NESTING) throw this.fault('too many parentheses inside of one another')
    const found = [this.items()]
    while (this.take('|')) found.push(this.items())
    this.nesting--
    return choice(...found)
  }

  private items(): Expression {
    const items: Expression[] = []
    for (let item = this.item(); item; item = this.item()) items.push(item)
    return sequence(...items)
  }

  /** Undefined where the alternative ends. */
  private item(): Expression | undefined {
    this.skip()
    const one = this.atom()
    if (!one) return undefined
    return this.repeated(one)
  }

  private atom(): Expression | undefined {
    const next = this.peek()
    if (next === undefined || next === '|' || next === ')') return undefined
    if (this.take('"')) return this.literal()
    if (this.take('[')) return this.characterClass()
    if (this.take('.')) return { type: 'set', ranges: complement([]) }
    if (this.take('(')) return this.group()
    const from = this.at
    const name = this.name()
    if (name === undefined) throw this.fault(`${JSON.stringify(next)} was not expected`)
    this.skip()
    if (!this.text.startsWith('::=', this.at)) return rule(name)
    // The next rule.
    this.at = from
    return undefined
  }

  private group(): Expression {
    const inner = this.alternatives()
    if (!this.take(')')) throw this.fault('a parenthesis is not closed')
    return inner
  }

  private repeated(item: Expression): Expression {
    this.skip()
    if (this.take('*')) return this.repeated(repeat(item, 0))
    if (this.take('+')) return this.repeated(repeat(item, 1))
    if (this.take('?')) return this.repeated(repeat(item, 0, 1))
    if (this.peek() !== '{') return item
    const braces = /\{\s*(\d{1,6})?\s*(,)?\s*(\d{1,6})?\s*\}/y
    braces.lastIndex = this.at
    const [found, low, comma, high] = braces.exec(this.text) ?? []
    if (found === undefined || (low === undefined && high === undefined))
      throw this.fault('{ must be {n}, {m,} or {m,n}')
    const min = Number(low ?? 0)
    const max = comma === undefined ? min : high === undefined ? Infinity : Number(high)
    if (min > max) throw this.fault('a repeat from more to less')
    if (min > MAX_REPEATS || (max !== Infinity && max > MAX_REPEATS))
      throw this.fault(`more than ${MAX_REPEATS} repeats`)
    this.at += found.length
    return this.repeated(repeat(item, min, max))
  }

  private literal(): Expression {
    let text = ''
    while (!this.take('"')) text += String.fromCodePoint(this.character('"'))
    if (/\p{Surrogate}/u.test(text)) throw this.fault('half a character')
    return text === '' ? EMPTY : literal(text)
  }

  private characterClass(): Expression {
    const negated = this.take('^')
    const ranges: CodeRange[] = []
    while (!this.take(']')) {
      const low = this.character(']')
      const isRange = this.peek() === '-' && this.text[this.at + 1] !== ']'
      if (isRange) this.at++
      const high = isRange ? this.character(']') : low
      if (high < low) throw this.fault('a range that is none')
      ranges.push([low, high])
    }
    return { type: 'set', ranges: negated ? complement(ranges) : ranges }
  }

  /** The code point of the next character or escape. */
  private character(closing: string): number {
    const code = this.text.codePointAt(this.at)
    if (code === undefined || code === 0x0a) throw this.fault(`${closing} is missing`)
    this.at += code > 0xffff ? 2 : 1
    if (code !== 0x5c) return code
    const escape = /(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([^xuU\n]))/y
    escape.lastIndex = this.at
    const [found, ...[x, u, U, plain]] = escape.exec(this.text) ?? []
    if (found === undefined) throw this.fault('an escape that is none')
    this.at += found.length
    if (plain !== undefined) return ESCAPES.get(plain) ?? plain.codePointAt(0) ?? 0
    const value = parseInt(x ?? u ?? U ?? '0', 16)
    if (value > 0x10ffff) throw this.fault('an escape beyond the last character')
    return value
  }
}

const ESCAPES: ReadonlyMap<string, number> = new Map([
  ['n', 0x0a],
  ['r', 0x0d],
  ['t', 0x09],
  ['0', 0x00],
])
