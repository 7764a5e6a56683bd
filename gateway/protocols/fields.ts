/** From an untrusted JSON value to a schema's type, with errors that name the field as the client wrote it. */
import type { z } from 'zod'
import { nearest } from '../../engine/config/index.js'
import { GatewayError } from '../errors.js'
import { messageSchema } from './body.js'

type Neutral = (value: unknown, body: Record<string, unknown>) => boolean

const never: Neutral = () => false
const isFalse: Neutral = (value) => value === false
const isTrue: Neutral = (value) => value === true
const isEmptyList: Neutral = (value) => Array.isArray(value) && value.length === 0
const isOneOf =
  (...values: unknown[]): Neutral =>
  (value) =>
    values.includes(value)

/**
 * Fields of the OpenAI API and its common extensions that are not served, each with the values that ask for nothing:
 * those are accepted, every other value is refused by name.
 */
const UNSUPPORTED: ReadonlyMap<string, Neutral> = new Map<string, Neutral>([
  ['tools', isEmptyList],
  ['tool_choice', isOneOf('none', 'auto')],
  ['parallel_tool_calls', isOneOf(true, false)],
  ['functions', isEmptyList],
  ['function_call', isOneOf('none', 'auto')],
  ['modalities', (value) => Array.isArray(value) && value.length === 1 && value[0] === 'text'],
  ['audio', never],
  ['prediction', never],
  ['reasoning_effort', isOneOf('none')],
  ['verbosity', isOneOf('medium')],
  ['web_search_options', never],
  ['service_tier', isOneOf('auto', 'default')],
  ['store', isFalse],
  ['best_of', (value, body) => value === (body['n'] ?? 1)],
  ['suffix', isOneOf('')],
  ['echo', isFalse],
  ['add_generation_prompt', isTrue],
  ['continue_final_message', isFalse],
  ['add_special_tokens', never],
  ['skip_special_tokens', isTrue],
  ['include_stop_str_in_output', isFalse],
  ['chat_template', never],
  ['chat_template_kwargs', never],
  ['use_beam_search', isFalse],
  ['length_penalty', isOneOf(1)],
  ['typical_p', isOneOf(1)],
  ['prompt_logprobs', never],
  ['truncate_prompt_tokens', never],
])

/** The same for the fields of a chat message; clients send answers back as they got them. */
const UNSUPPORTED_IN_MESSAGE: ReadonlyMap<string, Neutral> = new Map<string, Neutral>([
  ['tool_calls', isEmptyList],
  ['function_call', never],
  ['refusal', isOneOf('')],
  ['annotations', isEmptyList],
  ['audio', never],
])

/** True for a JSON object. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Parses a request body's top level: null means absent, unknown and unsupported fields are refused by name. */
export function parseBody<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape, z.core.$strict>,
  body: unknown,
): z.infer<z.ZodObject<Shape, z.core.$strict>> {
  if (!isRecord(body)) throw new GatewayError('invalid_request', 'the body must be a JSON object')
  const fields = acceptFields(body, schema.shape, UNSUPPORTED, '')
  if (Array.isArray(fields['messages'])) fields['messages'] = fields['messages'].map(acceptMessage)
  const result = schema.safeParse(fields)
  if (result.success) return result.data
  throw fromIssue(result.error.issues[0])
}

function acceptMessage(message: unknown, index: number): unknown {
  if (!isRecord(message)) return message
  if (Array.isArray(message['content'])) checkPartTypes(message['content'], `messages[${index}].content`)
  return acceptFields(message, messageSchema.shape, UNSUPPORTED_IN_MESSAGE, `messages[${index}].`)
}

function checkPartTypes(parts: unknown[], prefix: string): void {
  for (const [index, part] of parts.entries()) {
    if (!isRecord(part) || typeof part['type'] !== 'string' || part['type'] === 'text') continue
    const param = `${prefix}[${index}].type`
    const message = `${param} '${part['type'].slice(0, 32)}' is not supported; only text parts are`
    throw new GatewayError('unsupported_parameter', message, { param })
  }
}

/** A copy with the known fields that have a value. */
function acceptFields(
  source: Record<string, unknown>,
  known: z.ZodRawShape,
  unsupported: ReadonlyMap<string, Neutral>,
  prefix: string,
): Record<string, unknown> {
  const fields: Record<string, unknown> = {}
  for (const name of Object.keys(source)) {
    const value = source[name]
    if (Object.hasOwn(known, name)) {
      if (value !== null) fields[name] = value
      continue
    }
    const neutral = unsupported.get(name)
    if (!neutral) throw unknownField(name, prefix, known)
    if (value === null || neutral(value, source)) continue
    const param = prefix + name
    throw new GatewayError('unsupported_parameter', `${param} with this value is not supported`, { param })
  }
  return fields
}

function unknownField(name: string, prefix: string, known: z.ZodRawShape): GatewayError {
  const param = prefix + name.slice(0, 64)
  const meant = nearest(name, Object.keys(known))
  const hint = meant === undefined ? '' : `; did you mean ${meant}?`
  return new GatewayError('unsupported_parameter', `unknown field ${param}${hint}`, { param })
}

/** The error for the first thing a schema found wrong. */
function fromIssue(issue: z.core.$ZodIssue | undefined): GatewayError {
  const { path, message, missing, unknownName } = deepest(issue, [])
  const param = formatPath(path)
  if (unknownName !== undefined) {
    const field = formatPath([...path, unknownName.slice(0, 64)])
    return new GatewayError('unsupported_parameter', `unknown field ${field}`, { param: field })
  }
  const text = missing ? `${param} is required` : `${param}: ${message}`
  return new GatewayError('invalid_request', text, { param })
}

interface Fault {
  path: PropertyKey[]
  message: string
  missing: boolean
  unknownName: string | undefined
}

/** Follows a failed union into the alternative that got furthest. */
function deepest(issue: z.core.$ZodIssue | undefined, base: PropertyKey[]): Fault {
  if (!issue) return { path: base, message: 'invalid', missing: false, unknownName: undefined }
  const path = [...base, ...issue.path]
  if (issue.code === 'invalid_union' && issue.errors.length > 0) {
    const faults = issue.errors.map(([first]) => deepest(first, path))
    const furthest = faults.reduce(
      (a, b) => (b.path.length > a.path.length ? b : a),
      faults[0] ?? deepest(undefined, path),
    )
    return furthest
  }
  const message = issue.message.replace(/^Invalid (input|option): /, '').replace(/^Too (big|small): /, '')
  const unknownName = issue.code === 'unrecognized_keys' ? issue.keys[0] : undefined
  return { path, message, missing: issue.message.endsWith('received undefined'), unknownName }
}

/** `["messages", 0, "role"]` -> `messages[0].role`. */
function formatPath(path: readonly PropertyKey[]): string {
  return path
    .map((part, depth) => (typeof part === 'number' ? `[${part}]` : `${depth ? '.' : ''}${String(part)}`))
    .join('')
}
