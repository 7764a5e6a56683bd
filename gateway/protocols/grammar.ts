/** The grammar that an answer has to follow: every form in which a body asks for one becomes the one type. */
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { GatewayError } from '../errors.js'
import { isDeeper, MAX_SCHEMA_DEPTH } from '../middleware/body.js'
import type { SharedBody } from './body.js'
import { isRecord } from './fields.js'
import { MAX_CHOICES, MAX_GRAMMAR_CHARACTERS } from './grammar-fields.js'
import { checkText } from './prompt.js'

type Kind = NonNullable<Grammar['kind']>

/** A field that asks for a grammar, and the grammar; reading it throws where it is not valid. */
interface Form {
  param: string
  read: () => Kind
}

/** The constraints of vLLM, under its older and its newer names. */
type Constraints = NonNullable<SharedBody['structured_outputs']>

const ANY_OBJECT = '{"type":"object"}'

/**
 * The grammar that a body asks for; undefined = any text. A schema becomes its shortest JSON text, so that the same wish
 * is the same grammar in every form. Whether it can be kept is for the engine to say, which compiles it. Throws
 * invalid_request naming the field at fault.
 */
export function decodeGrammar(body: SharedBody): Grammar | undefined {
  const [form, another] = formsOf(body)
  if (form === undefined) return undefined
  if (another) throw fault(another.param, `cannot be combined with ${form.param}: an answer follows one grammar`)
  if ((body.min_tokens ?? 0) > 0) throw endless('min_tokens', form)
  if (body.ignore_eos) throw endless('ignore_eos', form)
  return { kind: form.read() }
}

function fault(param: string, problem: string): GatewayError {
  return new GatewayError('invalid_request', `${param} ${problem}`, { param })
}

function endless(param: string, form: Form): GatewayError {
  return fault(param, `cannot be combined with ${form.param}: the grammar says where the answer may end`)
}

function formsOf(body: SharedBody): Form[] {
  const { guided_json: json, guided_regex: regex, guided_choice: choice, guided_grammar: grammar } = body
  return [
    ...formatForms(body.response_format),
    ...outputForms(body.structured_outputs),
    ...constraintForms({ json, regex, choice, grammar }, 'guided_'),
  ]
}

function formatForms(format: SharedBody['response_format']): Form[] {
  if (format === undefined || format.type === 'text') return []
  const param = 'response_format'
  if (format.type === 'json_object') return [{ param, read: anyObject }]
  return [{ param, read: () => schemaKind(format.json_schema.schema, 'response_format.json_schema.schema') }]
}

function outputForms(outputs: Constraints | undefined): Form[] {
  if (outputs === undefined) return []
  const forms = constraintForms(outputs, 'structured_outputs.')
  if (forms.length > 0) return forms
  throw fault('structured_outputs', 'must have one of json, regex, choice, grammar and json_object')
}

function constraintForms(constraints: Constraints, prefix: string): Form[] {
  const { json, regex, choice, grammar, json_object: object } = constraints
  return [
    ...formOf(`${prefix}json`, json, schemaOrTextKind),
    ...formOf(`${prefix}regex`, regex, (text, param) => ({ $case: 'regex', regex: checkText(text, param) })),
    ...formOf(`${prefix}choice`, choice, choiceKind),
    ...formOf(`${prefix}grammar`, grammar, (text, param) => ({ $case: 'ebnf', ebnf: checkText(text, param) })),
    ...formOf(`${prefix}json_object`, object, anyObject),
  ]
}

/** None for a field that is absent, which null means, too. */
function formOf<T>(param: string, value: T | null | undefined, read: (value: T, param: string) => Kind): Form[] {
  return value === undefined || value === null ? [] : [{ param, read: () => read(value, param) }]
}

function anyObject(): Kind {
  return { $case: 'jsonSchema', jsonSchema: ANY_OBJECT }
}

function schemaOrTextKind(value: unknown, param: string): Kind {
  return schemaKind(typeof value === 'string' ? parse(value, param) : value, param)
}

function parse(text: string, param: string): unknown {
  checkLength(text.length, param)
  try {
    return JSON.parse(text)
  } catch (error) {
    const detail = error instanceof Error ? error.message : 'syntax error'
    throw new GatewayError('invalid_request', `${param} is not valid JSON: ${detail}`, { param, cause: error })
  }
}

/** The depth is looked at first: everything after it recurses. */
function schemaKind(schema: unknown, param: string): Kind {
  if (typeof schema !== 'boolean' && !isRecord(schema)) {
    throw fault(param, 'must be a JSON Schema, which is an object or a boolean')
  }
  if (isDeeper(schema, MAX_SCHEMA_DEPTH)) throw fault(param, `is nested deeper than ${MAX_SCHEMA_DEPTH} levels`)
  const jsonSchema = JSON.stringify(schema)
  checkLength(jsonSchema.length, param)
  checkValues(schema, param)
  return { $case: 'jsonSchema', jsonSchema }
}

function checkLength(characters: number, param: string): void {
  if (characters <= MAX_GRAMMAR_CHARACTERS) return
  throw fault(param, `has ${characters} characters, more than the limit of ${MAX_GRAMMAR_CHARACTERS}`)
}

/** What JSON text can say and its reader would take for something else: half a character, a number beyond all bounds. */
function checkValues(value: unknown, param: string): void {
  if (typeof value === 'string') checkText(value, param)
  if (typeof value === 'number' && !Number.isFinite(value)) throw fault(param, 'holds a number that is too large')
  if (typeof value !== 'object' || value === null) return
  for (const [key, inner] of Object.entries(value)) {
    checkText(key, param)
    checkValues(inner, param)
  }
}

function choiceKind(value: unknown, param: string): Kind {
  if (!Array.isArray(value)) throw fault(param, 'must be an array of strings')
  if (value.length === 0) throw fault(param, 'must not be empty')
  if (value.length > MAX_CHOICES) {
    throw fault(param, `has ${value.length} strings, more than the limit of ${MAX_CHOICES}`)
  }
  const texts = value.map((text: unknown, i) => choiceText(text, `${param}[${i}]`))
  checkLength(
    texts.reduce((sum, { length }) => sum + length, 0),
    param,
  )
  return { $case: 'choice', choice: { texts: texts.map((text, i) => checkText(text, `${param}[${i}]`)) } }
}

function choiceText(text: unknown, param: string): string {
  if (typeof text !== 'string') throw fault(param, 'must be a string')
  if (text === '') throw fault(param, 'must not be empty')
  return text
}
