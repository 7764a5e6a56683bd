/** Token ids, prompts and other lists whose length a client chooses: checked in one pass that stops at the first fault. */
import { GatewayError } from '../errors.js'
import type { GenerateInput } from '../request.js'
import type { Limits } from '../services.js'
import { isRecord } from './fields.js'

function fault(param: string, problem: string): GatewayError {
  return new GatewayError('invalid_request', `${param} ${problem}`, { param })
}

/** The text itself; refused when it holds half a surrogate pair, which has no UTF-8 form. */
export function checkText(text: string, param: string): string {
  if (/\p{Surrogate}/u.test(text)) throw fault(param, 'holds an unpaired surrogate, which is not valid Unicode')
  return text
}

/** Token ids, every one below `vocabSize`. */
export function decodeTokenIds(value: unknown, param: string, vocabSize: number): number[] {
  if (!Array.isArray(value)) throw fault(param, 'must be an array of token ids')
  for (let i = 0; i < value.length; i++) {
    if (isTokenId(value[i], vocabSize)) continue
    throw fault(`${param}[${i}]`, `must be a token id: an integer from 0 to ${vocabSize - 1}`)
  }
  return value
}

function isTokenId(value: unknown, vocabSize: number): boolean {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < vocabSize
}

/** One input per prompt. */
export type Inputs = [GenerateInput, ...GenerateInput[]]

/** `prompt` of a completion: one input per prompt. `vocabSize` is asked for only when ids are given. */
export function decodePrompt(value: unknown, limits: Limits, vocabSize: () => number): Inputs {
  if (typeof value === 'string') return [textInput(value, 'prompt')]
  if (value === undefined) throw fault('prompt', 'is required')
  if (!Array.isArray(value)) throw fault('prompt', 'must be a string, an array of token ids, or an array of either')
  if (typeof value[0] === 'number') return [tokenInput(value, 'prompt', limits, vocabSize())]
  if (value.length > limits.maxPrompts) {
    throw fault('prompt', `has ${value.length} prompts, more than the limit of ${limits.maxPrompts}`)
  }
  const decode = (entry: unknown, i: number): GenerateInput =>
    oneOfMany(entry, typeof value[0], `prompt[${i}]`, limits, vocabSize)
  const [first, ...rest] = value.map(decode)
  if (!first) throw fault('prompt', 'must not be empty')
  return [first, ...rest]
}

function oneOfMany(
  entry: unknown,
  kind: string,
  param: string,
  limits: Limits,
  vocabSize: () => number,
): GenerateInput {
  if (kind === 'string' && typeof entry === 'string') return textInput(entry, param)
  if (kind === 'object' && Array.isArray(entry)) return tokenInput(entry, param, limits, vocabSize())
  throw fault(param, 'must be a string or an array of token ids, the same kind as the other prompts')
}

function textInput(text: string, param: string): GenerateInput {
  if (text === '') throw fault(param, 'must not be empty')
  return { kind: 'text', text: checkText(text, param) }
}

function tokenInput(value: unknown[], param: string, limits: Limits, vocabSize: number): GenerateInput {
  if (value.length === 0) throw fault(param, 'must not be empty')
  if (value.length > limits.maxPromptTokens) {
    const message = `${param} has ${value.length} tokens, more than the limit of ${limits.maxPromptTokens}`
    throw new GatewayError('context_length_exceeded', message, { param })
  }
  return { kind: 'tokens', tokens: decodeTokenIds(value, param, vocabSize) }
}

/** `stop`: one string or several. */
export function decodeStop(value: unknown, limits: Limits): string[] {
  if (value === undefined) return []
  const list: unknown[] = Array.isArray(value) ? value : [value]
  if (list.length > limits.maxStopStrings) {
    throw fault('stop', `has ${list.length} strings, more than the limit of ${limits.maxStopStrings}`)
  }
  return list.map((entry, i) => stopString(entry, Array.isArray(value) ? `stop[${i}]` : 'stop', limits))
}

function stopString(entry: unknown, param: string, limits: Limits): string {
  if (typeof entry !== 'string') throw fault(param, 'must be a string')
  if (entry === '') throw fault(param, 'must not be empty')
  if (entry.length > limits.maxStopLength) {
    throw fault(param, `has ${entry.length} characters, more than the limit of ${limits.maxStopLength}`)
  }
  return checkText(entry, param)
}

const MAX_BIASED_TOKENS = 4096
const MAX_BIAS = 100

/** `logit_bias`: token id -> bias. */
export function decodeLogitBias(value: unknown, vocabSize: () => number): Map<number, number> {
  const biases = new Map<number, number>()
  if (value === undefined) return biases
  if (!isRecord(value)) throw fault('logit_bias', 'must be an object of token ids and biases')
  const keys = Object.keys(value)
  if (keys.length > MAX_BIASED_TOKENS) {
    throw fault('logit_bias', `has ${keys.length} entries, more than the limit of ${MAX_BIASED_TOKENS}`)
  }
  for (const key of keys) biases.set(biasedToken(key, vocabSize()), bias(value[key], key))
  return biases
}

function biasedToken(key: string, vocabSize: number): number {
  if (/^\d{1,10}$/.test(key) && Number(key) < vocabSize) return Number(key)
  throw fault('logit_bias', `has the key "${key.slice(0, 32)}", which is not a token id below ${vocabSize}`)
}

function bias(value: unknown, key: string): number {
  if (typeof value === 'number' && Math.abs(value) <= MAX_BIAS) return value
  throw fault(`logit_bias.${key}`, `must be a number from -${MAX_BIAS} to ${MAX_BIAS}`)
}
