/** Request bodies -> GenerateRequests: defaults and the bounds of the configuration. The same for every protocol. */
import { GatewayError } from '../errors.js'
import type { ChatMessage, GenerateRequest, Sampling } from '../request.js'
import type { Limits, Services } from '../services.js'
import { chatBodySchema, completionBodySchema, type ChatBody, type CompletionBody, type SharedBody } from './body.js'
import { chooseModel } from './auto.js'
import { parseBody } from './fields.js'
import { decodeGrammar } from './grammar.js'
import { toNeeds } from './needs.js'
import { AUTO } from '../router/target.js'
import type { Origin } from './origin.js'
import { checkText, decodeLogitBias, decodePrompt, decodeStop, decodeTokenIds, type Inputs } from './prompt.js'

/** What decoding needs of the services. */
export type DecodeServices = Pick<Services, 'limits' | 'models'>

/** A decoded body. Choice i of request r has index r * n + i in the answer. */
export interface Call {
  /** One per prompt, at least one; all with the same n. */
  requests: [GenerateRequest, ...GenerateRequest[]]
  kind: 'chat' | 'completion'
  stream: boolean
  /** The stream outlives its connection for a while. */
  resumable: boolean
  /** The stream ends with a usage chunk. */
  includeUsage: boolean
  /** Choices carry their token ids beside the text. */
  includeTokenIds: boolean
}

/** OpenAI's default for completions. */
const COMPLETION_MAX_TOKENS = 16

/** Decodes a chat body (parsed JSON). Throws GatewayError naming the field at fault. */
export function decodeChat(body: unknown, origin: Origin, services: DecodeServices): Call {
  const chat = parseBody(chatBodySchema, body)
  const messages = chat.messages.map(decodeMessage)
  return decodeCall(chat, origin, services, [{ kind: 'chat', messages }], {
    maxTokens: chatMaxTokens(chat),
    topLogprobs: chatTopLogprobs(chat, services.limits),
    echo: false,
  })
}

/** Decodes a completion body (parsed JSON). Throws GatewayError naming the field at fault. */
export function decodeCompletion(body: unknown, origin: Origin, services: DecodeServices): Call {
  const completion = parseBody(completionBodySchema, body)
  const inputs = decodePrompt(completion.prompt, services.limits, () => idBound(completion.model, 'prompt', services))
  return decodeCall(completion, origin, services, inputs, {
    maxTokens: completionMaxTokens(completion),
    topLogprobs: checkTopLogprobs(completion.logprobs, 'logprobs', services.limits),
    echo: completion.echo ?? false,
  })
}

function decodeMessage(message: ChatBody['messages'][number], index: number): ChatMessage {
  const param = `messages[${index}].content`
  const { role, content, name } = message
  const text = typeof content === 'string' ? content : content.map((part) => part.text).join('\n')
  return {
    role: role === 'developer' ? 'system' : role,
    content: checkText(text, param),
    ...(name !== undefined && { name }),
  }
}

function chatMaxTokens({ max_tokens: old, max_completion_tokens: current }: ChatBody): number | undefined {
  if (old !== undefined && current !== undefined && old !== current) {
    throw invalid('max_tokens', 'and max_completion_tokens differ; give one of them')
  }
  return current ?? old
}

function completionMaxTokens({ max_tokens: maxTokens = COMPLETION_MAX_TOKENS, echo }: CompletionBody): number {
  if (maxTokens === 0 && !echo) throw invalid('max_tokens', 'must be at least 1 (0 only together with echo)')
  return maxTokens
}

function chatTopLogprobs({ logprobs, top_logprobs: top }: ChatBody, limits: Limits): number | undefined {
  if (logprobs) return checkTopLogprobs(top ?? 0, 'top_logprobs', limits)
  if (top !== undefined && top > 0) throw invalid('top_logprobs', 'needs logprobs to be true')
  return undefined
}

function checkTopLogprobs(top: number | undefined, param: string, limits: Limits): number | undefined {
  if (top !== undefined && top > limits.maxTopLogprobs) throw invalid(param, `must be at most ${limits.maxTopLogprobs}`)
  return top
}

interface Extent {
  maxTokens: number | undefined
  topLogprobs: number | undefined
  echo: boolean
}

function decodeCall(
  body: SharedBody,
  origin: Origin,
  { limits, models }: DecodeServices,
  inputs: Inputs,
  extent: Extent,
): Call {
  const { n = 1, stream = false } = body
  if (n > limits.maxChoices) throw invalid('n', `must be at most ${limits.maxChoices}`)
  const most = Math.max(limits.maxChoices, limits.maxPrompts)
  if (inputs.length * n > most) throw invalid('n', `times the number of prompts must be at most ${most}`)
  if (body.stream_options && !stream) throw invalid('stream_options', 'is only allowed when stream is true')
  const deadlineMs = earlier(body.deadline_ms, origin.deadlineMs)
  const priority = body.priority ?? origin.priority
  const needs = toNeeds(body, origin.needs)
  const grammar = decodeGrammar(body)
  const maxTokens = extent.maxTokens === undefined ? {} : { maxTokens: extent.maxTokens }
  const chosen = chooseModel({ model: body.model, input: inputs[0], deadlineMs, ...needs, ...maxTokens }, models)
  const common = {
    ...needs,
    ...chosen,
    sampling: decodeSampling(body, extent.maxTokens, () => models.vocabSize(chosen.model)),
    stop: decodeStop(body.stop, limits),
    ...(grammar && { grammar }),
    ...maxTokens,
    ...(extent.topLogprobs !== undefined && { topLogprobs: extent.topLogprobs }),
    echo: extent.echo,
    n,
    ...(priority !== undefined && { priority }),
    whole: !(stream || origin.streams),
    deadlineMs,
    tenant: origin.tenant,
    ...(origin.traceparent !== undefined && { traceparent: origin.traceparent }),
  }
  const [first, ...rest] = inputs
  return {
    requests: [
      { id: origin.id, input: first, ...common },
      ...rest.map((input, i) => Object.assign({ id: `${origin.id}-${i + 1}`, input }, common)),
    ],
    kind: first.kind === 'chat' ? 'chat' : 'completion',
    stream,
    resumable: body.resumable ?? false,
    includeUsage: body.stream_options?.include_usage ?? false,
    includeTokenIds: body.return_token_ids ?? false,
  }
}

/** Ids mean nothing before a model is chosen. */
function idBound(model: string, param: string, { models }: DecodeServices): number {
  if (model === AUTO) throw invalid(param, 'may not be token ids when the model is auto')
  return models.vocabSize(model)
}

/** Of two deadlines the earlier one holds; 0 = none. */
function earlier(a: number | undefined, b: number | undefined): number {
  return Math.min(a ?? b ?? 0, b ?? a ?? 0)
}

function decodeSampling(body: SharedBody, maxTokens: number | undefined, vocabSize: () => number): Sampling {
  const minTokens = body.min_tokens ?? 0
  if (maxTokens !== undefined && minTokens > maxTokens)
    throw invalid('min_tokens', `is more than max_tokens (${maxTokens})`)
  const stopTokenIds = body.stop_token_ids
  return {
    temperature: body.temperature ?? 1,
    topK: Math.max(0, body.top_k ?? 0),
    topP: body.top_p ?? 1,
    minP: body.min_p ?? 0,
    repetitionPenalty: body.repetition_penalty ?? 1,
    presencePenalty: body.presence_penalty ?? 0,
    frequencyPenalty: body.frequency_penalty ?? 0,
    ...(body.seed !== undefined && { seed: body.seed }),
    logitBias: decodeLogitBias(body.logit_bias, vocabSize),
    minTokens,
    ignoreEos: body.ignore_eos ?? false,
    stopTokenIds: stopTokenIds === undefined ? [] : decodeStopTokenIds(stopTokenIds, vocabSize()),
  }
}

const MAX_STOP_TOKEN_IDS = 256

function decodeStopTokenIds(value: unknown, vocabSize: number): number[] {
  if (Array.isArray(value) && value.length > MAX_STOP_TOKEN_IDS) {
    throw invalid('stop_token_ids', `must have at most ${MAX_STOP_TOKEN_IDS} ids`)
  }
  return decodeTokenIds(value, 'stop_token_ids', vocabSize)
}

function invalid(param: string, problem: string): GatewayError {
  return new GatewayError('invalid_request', `${param} ${problem}`, { param })
}
