import { type CodeRange, union } from './code-points.js'

/** What a text may be. */
export type Expression =
  /** These bytes. */
  | { type: 'bytes'; bytes: Uint8Array }
  /** One character of a set, sorted. */
  | { type: 'set'; ranges: readonly CodeRange[] }
  | { type: 'sequence'; items: readonly Expression[] }
  | { type: 'choice'; items: readonly Expression[] }
  /** `max` may be Infinity. */
  | { type: 'repeat'; item: Expression; min: number; max: number }
  /** What the rule of that name says. */
  | { type: 'rule'; name: string }

/** Rules by name; a text follows the grammar when it follows `root`. */
export type GrammarRules = Map<string, Expression>

/** Nothing at all is a text of it. */
export const EMPTY: Expression = { type: 'sequence', items: [] }

export function literal(text: string): Expression {
  return { type: 'bytes', bytes: Buffer.from(text) }
}

export function characters(...ranges: readonly CodeRange[]): Expression {
  return { type: 'set', ranges: union(ranges) }
}

/** A string counts as a literal. */
export function sequence(...items: readonly (Expression | string)[]): Expression {
  const all = items.map((item) => (typeof item === 'string' ? literal(item) : item))
  return all.length === 1 && all[0] ? all[0] : { type: 'sequence', items: all }
}

export function choice(...items: readonly Expression[]): Expression {
  return items.length === 1 && items[0] ? items[0] : { type: 'choice', items }
}

export function repeat(item: Expression, min: number, max = Infinity): Expression {
  return min === 1 && max === 1 ? item : { type: 'repeat', item, min, max }
}

export function optional(item: Expression): Expression {
  return repeat(item, 0, 1)
}

export function rule(name: string): Expression {
  return { type: 'rule', name }
}
