import { complement } from './code-points.js'
import {
  characters,
  choice,
  EMPTY,
  type Expression,
  type GrammarRules,
  literal,
  optional,
  repeat,
  rule,
  sequence,
} from './expression.js'
import { GrammarError } from './grammar-error.js'
import { FORMATS, UNKEPT_FORMATS } from './json-formats.js'
import { ANY_INTEGER, ANY_NUMBER, type Bounds, boundedNumber } from './json-numbers.js'
import { patternExpression } from './pattern.js'

type Schema = Readonly<Record<string, unknown>>

/** Characters of a JSON string that stand for themselves. */
const PLAIN = complement([
  [0x00, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
])
const PLAIN_CHARACTER = characters(...PLAIN)
const HEX = characters([0x30, 0x39], [0x41, 0x46], [0x61, 0x66])
const ESCAPE = sequence(
  '\\',
  choice(...Array.from('"\\/bfnrt', (escaped) => literal(escaped)), sequence('u', repeat(HEX, 4, 4))),
)
const STRING = rule('string')
const VALUE = rule('value')

/** JSON of any kind. White space is where Python's json.dumps has it: where it is free, weak models write nothing else. */
const BASE: readonly (readonly [name: string, body: Expression])[] = [
  ['string', sequence('"', repeat(choice(PLAIN_CHARACTER, ESCAPE), 0), '"')],
  ['integer', ANY_INTEGER],
  ['number', ANY_NUMBER],
  ['boolean', choice(literal('true'), literal('false'))],
  ['array', sequence('[', optional(list(VALUE)), ']')],
  ['object', sequence('{', optional(list(sequence(STRING, ': ', VALUE))), '}')],
  ['value', choice(...['string', 'number', 'boolean', 'array', 'object'].map(rule), literal('null'))],
]

/** One or more with commas between them. */
function list(item: Expression, min = 1, max = Infinity): Expression {
  return sequence(item, repeat(sequence(', ', item), min - 1, max - 1))
}

/** Assertions that are not kept, each with the values that ask for nothing. */
const UNKEPT: ReadonlyMap<string, readonly unknown[]> = new Map<string, readonly unknown[]>([
  ['multipleOf', []],
  ['uniqueItems', [false]],
  ['contains', []],
  ['minProperties', [0]],
  ['maxProperties', []],
  ['patternProperties', []],
  ['propertyNames', []],
  ['dependentRequired', []],
  ['dependentSchemas', []],
  ['dependencies', []],
  ['additionalItems', [false, true]],
  ['not', []],
  ['if', []],
  ['$dynamicRef', []],
  ['$recursiveRef', []],
])

const BOUNDS = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'] as const
const OF_TYPE: Readonly<Record<string, readonly string[]>> = {
  string: ['pattern', 'minLength', 'maxLength', 'format'],
  number: BOUNDS,
  array: ['items', 'prefixItems', 'minItems', 'maxItems', 'unevaluatedItems'],
  object: ['properties', 'required', 'additionalProperties', 'unevaluatedProperties'],
}
const TYPES = ['string', 'integer', 'number', 'boolean', 'null', 'array', 'object']
/** Keywords that say all of a schema. */
const WHOLE = ['$ref', 'const', 'enum', 'anyOf', 'oneOf', 'allOf']
const ASSERTIONS = ['type', ...WHOLE, ...Object.values(OF_TYPE).flat()]

const MAX_DEPTH = 200
const MAX_SCHEMAS = 10_000
const MAX_ITEMS = 10_000

/**
 * A JSON Schema (2020-12) as rules whose texts are JSON that follows it. Properties come in the schema's order, and none
 * that it does not name; `oneOf` counts as `anyOf`. Throws GrammarError naming the place of what is not kept.
 */
export function schemaRules(schema: unknown): GrammarRules {
  return new SchemaReader(schema).read()
}

class SchemaReader {
  private readonly rules: GrammarRules = new Map(BASE)
  /** What is referred to, by how: a rule has the same name, so that people see the place in messages. */
  private readonly referred = new Set<string>()
  private count = 0

  constructor(private readonly root: unknown) {}

  read(): GrammarRules {
    return this.rules.set('root', this.expression(this.root, []))
  }

  /** A name for an expression that is used more than once. */
  private named(body: Expression): Expression {
    const name = `#${this.rules.size}`
    this.rules.set(name, body)
    return rule(name)
  }

  private expression(schema: unknown, path: readonly string[]): Expression {
    if (path.length > MAX_DEPTH || ++this.count > MAX_SCHEMAS) throw fault(path, 'the schema is too large')
    if (schema === true) return VALUE
    if (schema === false) throw fault(path, 'nothing follows the schema false')
    if (!isObject(schema)) throw fault(path, 'is no schema')
    for (const [name, neutral] of UNKEPT) {
      if (Object.hasOwn(schema, name) && !neutral.includes(schema[name])) throw fault([...path, name], 'is not kept')
    }
    const present = ASSERTIONS.filter((name) => Object.hasOwn(schema, name))
    const whole = WHOLE.find((name) => present.includes(name))
    return whole === undefined ? this.typed(schema, present, path) : this.whole(schema, whole, present, path)
  }

  private whole(schema: Schema, name: string, present: readonly string[], path: readonly string[]): Expression {
    const place = [...path, name]
    const isValues = name === 'const' || name === 'enum'
    const beside = present.find((other) => other !== name && !(isValues && other === 'type'))
    if (beside !== undefined) throw fault([...path, beside], `is not kept beside ${name}`)
    if (name === '$ref') return this.reference(schema[name], place)
    const values = name === 'const' ? [schema['const']] : schema[name]
    if (!Array.isArray(values) || values.length === 0) throw fault(place, 'must be a list that is not empty')
    if (isValues) return choice(...ofTypes(values, schema['type'], place).map((value) => literal(textOf(value))))
    if (name === 'allOf' && values.length > 1) throw fault(place, 'of more than one schema is not kept')
    return choice(...values.map((value, i) => this.expression(value, [...place, String(i)])))
  }

  /** A rule for what is referred to, so that schemas may refer to themselves. */
  private reference(to: unknown, path: readonly string[]): Expression {
    if (typeof to !== 'string' || !/^#(?:\/|$)/.test(to)) {
      throw fault(path, 'must begin with #/, i.e. lead to a place in the schema itself')
    }
    if (this.referred.has(to)) return rule(to)
    const steps = to.split('/').slice(1).map(decoded)
    const target = steps.reduce(childOf, this.root)
    if (target === undefined) throw fault(path, `leads nowhere: ${to.slice(0, 100)}`)
    this.referred.add(to)
    this.rules.set(to, this.expression(target, steps))
    return rule(to)
  }

  private typed(schema: Schema, present: readonly string[], path: readonly string[]): Expression {
    const { type = inferred(present) } = schema
    if (type === undefined) return VALUE
    if (Array.isArray(type)) {
      if (type.length === 0) throw fault([...path, 'type'], 'must not be empty')
      return choice(...type.map((one) => this.typed({ ...schema, type: String(one) }, present, path)))
    }
    switch (type) {
      case 'string':
        return stringExpression(schema, path)
      case 'integer':
      case 'number':
        return numberExpression(schema, type === 'integer', path)
      case 'boolean':
        return rule('boolean')
      case 'null':
        return literal('null')
      case 'array':
        return this.array(schema, path)
      case 'object':
        return this.object(schema, path)
      default:
        throw fault([...path, 'type'], `must be one of ${TYPES.join(', ')}`)
    }
  }

  /** With `prefixItems` exactly those. */
  private array(schema: Schema, path: readonly string[]): Expression {
    const { items = schema['unevaluatedItems'] ?? true, prefixItems: prefix } = schema
    const least = count(schema, 'minItems', path) ?? 0
    const most = items === false && prefix === undefined ? 0 : (count(schema, 'maxItems', path) ?? Infinity)
    if (least > most) throw fault([...path, 'minItems'], 'is more than there may be')
    if (Array.isArray(items)) throw fault([...path, 'items'], 'must be one schema (prefixItems is a list)')
    if (prefix !== undefined) {
      if (!Array.isArray(prefix) || prefix.length === 0) {
        throw fault([...path, 'prefixItems'], 'must be a list that is not empty')
      }
      if (prefix.length < least || prefix.length > most) {
        throw fault([...path, 'prefixItems'], 'does not fit minItems and maxItems')
      }
      const each = prefix.map((item, i) => this.expression(item, [...path, 'prefixItems', String(i)]))
      return sequence('[', ...each.flatMap((item, i) => (i === 0 ? [item] : [', ', item])), ']')
    }
    if (most === 0) return literal('[]')
    const all = list(this.named(this.expression(items, [...path, 'items'])), Math.max(1, least), most)
    return sequence('[', least > 0 ? all : optional(all), ']')
  }

  /** Where properties are named there are no others: a name that comes twice could undo what is said of it. */
  private object(schema: Schema, path: readonly string[]): Expression {
    const { properties = {}, required = [] } = schema
    const { additionalProperties: more = schema['unevaluatedProperties'] ?? true } = schema
    if (!isObject(properties)) throw fault([...path, 'properties'], 'must be an object')
    if (!Array.isArray(required)) throw fault([...path, 'required'], 'must be a list')
    const needed = new Set<unknown>(required)
    for (const name of needed) {
      if (typeof name === 'string' && Object.hasOwn(properties, name)) continue
      throw fault([...path, 'required'], `names ${JSON.stringify(name)}, which is not among properties`)
    }
    const names = Object.keys(properties)
    if (names.length === 0) {
      if (more === false) return literal('{}')
      const member = sequence(STRING, ': ', this.expression(more, [...path, 'additionalProperties']))
      return sequence('{', optional(list(this.named(member))), '}')
    }
    const members = names.map((name) => ({
      member: sequence(`${JSON.stringify(name)}: `, this.expression(properties[name], [...path, 'properties', name])),
      needed: needed.has(name),
    }))
    return sequence('{', this.members(members), '}')
  }

  /** Members in their order, with a comma before each but the first that is there. */
  private members(members: readonly { member: Expression; needed: boolean }[]): Expression {
    const firstNeeded = members.findIndex(({ needed }) => needed)
    let rest = EMPTY
    // From the end on: what there may be where none has come yet, and where one has.
    const first: Expression[] = firstNeeded < 0 ? [EMPTY] : []
    for (const [index, { member, needed }] of [...members.entries()].toReversed()) {
      const own = this.named(member)
      if (firstNeeded < 0 || index <= firstNeeded) first.push(sequence(own, rest))
      const next = sequence(', ', own)
      rest = this.named(sequence(needed ? next : optional(next), rest))
    }
    return choice(...first)
  }
}

function stringExpression(schema: Schema, path: readonly string[]): Expression {
  const { pattern, format } = schema
  const [min = 0, max] = [count(schema, 'minLength', path), count(schema, 'maxLength', path)]
  if (pattern !== undefined && typeof pattern !== 'string') throw fault([...path, 'pattern'], 'must be a string')
  if (typeof format === 'string' && UNKEPT_FORMATS.has(format))
    throw fault([...path, 'format'], `${format} is not kept`)
  const known = typeof format === 'string' ? FORMATS.get(format) : undefined
  const hasLength = min > 0 || max !== undefined
  if ([pattern !== undefined, hasLength, known !== undefined].filter(Boolean).length > 1) {
    throw fault(path, 'of pattern, length and format only one is kept')
  }
  if (max !== undefined && min > max) throw fault([...path, 'minLength'], 'is more than maxLength')
  if (hasLength) return sequence('"', repeat(PLAIN_CHARACTER, min, max), '"')
  const wanted = pattern ?? known
  return wanted === undefined
    ? STRING
    : sequence(
        '"',
        at([...path, 'pattern'], () => patternExpression(wanted, PLAIN)),
        '"',
      )
}

function numberExpression(schema: Schema, integer: boolean, path: readonly string[]): Expression {
  const bounds: Bounds = {}
  for (const name of BOUNDS) {
    const value = schema[name]
    if (value === undefined) continue
    if (typeof value !== 'number') throw fault([...path, name], 'must be a number')
    bounds[name] = value
  }
  if (Object.keys(bounds).length === 0) return rule(integer ? 'integer' : 'number')
  return at(path, () => boundedNumber(bounds, integer))
}

/** Runs what does not know its place. */
function at<T>(path: readonly string[], run: () => T): T {
  try {
    return run()
  } catch (error) {
    throw error instanceof GrammarError ? fault(path, error.message) : error
  }
}

/** The type that keywords are about, where it is not said. */
function inferred(present: readonly string[]): string | undefined {
  return Object.keys(OF_TYPE).find((type) => OF_TYPE[type]?.some((name) => present.includes(name)))
}

/** Those of the values that are of the type, or of one of the types. */
function ofTypes(values: readonly unknown[], type: unknown, path: readonly string[]): unknown[] {
  if (type === undefined) return [...values]
  const types = new Set<unknown>([type].flat())
  const kept = values.filter((value) => types.has(typeOf(value)) || (Number.isInteger(value) && types.has('integer')))
  if (kept.length === 0) throw fault(path, 'holds no value of its type')
  return kept
}

function typeOf(value: unknown): string {
  if (value === null) return 'null'
  return Array.isArray(value) ? 'array' : typeof value
}

/** JSON with the white space that texts have elsewhere. */
function textOf(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(textOf).join(', ')}]`
  if (!isObject(value)) return JSON.stringify(value)
  const members = Object.entries(value).map(([name, member]) => `${JSON.stringify(name)}: ${textOf(member)}`)
  return `{${members.join(', ')}}`
}

function count(schema: Schema, name: string, path: readonly string[]): number | undefined {
  const value = schema[name]
  if (value === undefined) return undefined
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0) {
    throw fault([...path, name], 'must be a whole number')
  }
  if (value > MAX_ITEMS) throw fault([...path, name], `must be at most ${MAX_ITEMS}`)
  return value
}

function childOf(parent: unknown, key: string): unknown {
  const isNode = typeof parent === 'object' && parent !== null
  return isNode && Object.hasOwn(parent, key) ? Reflect.get(parent, key) : undefined
}

/** A part of a JSON pointer in a URI (RFC 6901). */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~')
  } catch {
    return part
  }
}

function isObject(value: unknown): value is Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function fault(path: readonly string[], reason: string): GrammarError {
  const place = path.length === 0 ? 'the schema' : `the schema's ${path.join('.').slice(0, 200)}`
  return new GrammarError(`${place}: ${reason}`)
}
