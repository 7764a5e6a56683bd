/**
 * Messages of gateway.proto -> the bodies of the HTTP API, which are then validated there: field names, ranges and
 * messages have one definition. Absent proto3 fields stay absent.
 */
import type {
  ChatRequest,
  CompletionRequest,
  DetokenizeRequest,
  GenerateOptions,
  RouteRequest,
  TokenizeRequest,
} from '../../../proto/gen/edgeshift/v1/gateway.js'
import type { Grammar } from '../../../proto/gen/edgeshift/v1/grammar.js'
import { detokenizeBodySchema, tokenizeBodySchema } from '../body.js'
import { type Call, decodeChat, decodeCompletion, type DecodeServices } from '../decode.js'
import { parseBody } from '../fields.js'
import type { Origin } from '../origin.js'
import { checkText, decodeTokenIds } from '../prompt.js'

/** A request body as the HTTP API reads it, not validated yet. */
type Body = Record<string, unknown>

/** Decodes and validates a chat. Throws GatewayError naming the field as the HTTP API does. */
export function chatCall(request: ChatRequest, origin: Origin, services: DecodeServices): Call {
  return decodeChat(chatBody(request), origin, services)
}

/** Decodes and validates a completion; a message holds one prompt. Throws like chatCall. */
export function completionCall(request: CompletionRequest, origin: Origin, services: DecodeServices): Call {
  return decodeCompletion(completionBody(request), origin, services)
}

/** The /v1/route body that asks for the same; undefined where the message asks for nothing. */
export function routeBody({ request }: RouteRequest): Body | undefined {
  if (request?.$case === 'chat') return chatBody(request.chat)
  if (request?.$case === 'completion') return completionBody(request.completion)
  if (!request) return undefined
  const { model, promptTokens, options } = request.size
  return {
    ...modelField(model),
    ...(promptTokens !== undefined && { prompt_tokens: promptTokens }),
    ...optionFields(options),
  }
}

/** Validates a tokenize request. Throws like chatCall. */
export function tokenizeRequest({ model, text, parseSpecial }: TokenizeRequest): TokenizeRequest {
  const body = parseBody(tokenizeBodySchema, { ...modelField(model), prompt: text, parse_special: parseSpecial })
  return { model: body.model, text: checkText(body.prompt, 'text'), parseSpecial }
}

/** Validates a detokenize request: every id is in the model's vocabulary. Throws like chatCall. */
export function detokenizeRequest(
  { model, tokens }: DetokenizeRequest,
  { models }: Pick<DecodeServices, 'models'>,
): DetokenizeRequest {
  const body = parseBody(detokenizeBodySchema, { ...modelField(model), tokens })
  return { model: body.model, tokens: decodeTokenIds(body.tokens, 'tokens', models.vocabSize(body.model)) }
}

/** The /v1/chat/completions body that asks for the same. */
export function chatBody(request: ChatRequest): Body {
  const { options } = request
  return {
    ...modelField(request.model),
    messages: request.messages.map(({ role, content, name }) => ({ role, content, ...(name !== '' && { name }) })),
    ...optionFields(options),
    ...(options?.topLogprobs !== undefined && { logprobs: true, top_logprobs: options.topLogprobs }),
  }
}

/** The /v1/completions body that asks for the same. */
export function completionBody(request: CompletionRequest): Body {
  const { prompt, options } = request
  return {
    ...modelField(request.model),
    ...(prompt && { prompt: prompt.$case === 'text' ? prompt.text : prompt.tokens.ids }),
    ...(request.echo && { echo: true }),
    ...optionFields(options),
    ...(options?.topLogprobs !== undefined && { logprobs: options.topLogprobs }),
  }
}

/** proto3 strings have no presence here: the empty name is the missing one. */
function modelField(model: string): Body {
  return model === '' ? {} : { model }
}

/** Everything but log probabilities, whose fields differ between the two bodies. */
function optionFields(options: GenerateOptions | undefined): Body {
  if (!options) return {}
  return definedOnly({
    max_tokens: options.maxTokens,
    temperature: asWritten(options.temperature),
    top_k: options.topK,
    top_p: asWritten(options.topP),
    min_p: asWritten(options.minP),
    repetition_penalty: asWritten(options.repetitionPenalty),
    presence_penalty: asWritten(options.presencePenalty),
    frequency_penalty: asWritten(options.frequencyPenalty),
    seed: options.seed,
    logit_bias: options.logitBias.size > 0 ? biases(options.logitBias) : undefined,
    stop: options.stop.length > 0 ? options.stop : undefined,
    stop_token_ids: options.stopTokenIds.length > 0 ? options.stopTokenIds : undefined,
    min_tokens: options.minTokens,
    ignore_eos: options.ignoreEos,
    structured_outputs: options.grammar && structuredOutputs(options.grammar),
    n: options.n,
    priority: options.priority,
    resumable: options.resumable,
    precision: options.precision,
    min_precision: options.minPrecision,
    memory_limit_gb: options.memoryLimitGb,
    speed_priority: options.speedPriority,
    degrade: options.degrade,
    deadline_ms: options.deadlineMs,
  })
}

/** Without a kind it stays empty, which is refused: a client that sends a grammar wants one. */
function structuredOutputs({ kind }: Grammar): Body {
  switch (kind?.$case) {
    case 'jsonSchema':
      return { json: kind.jsonSchema }
    case 'regex':
      return { regex: kind.regex }
    case 'ebnf':
      return { grammar: kind.ebnf }
    case 'choice':
      return { choice: kind.choice.texts }
    default:
      return {}
  }
}

function biases(logitBias: Map<number, number>): Body {
  return Object.fromEntries(Array.from(logitBias, ([token, bias]) => [token, asWritten(bias)]))
}

/**
 * The shortest decimal that rounds to the same 32-bit float: 0.7 instead of 0.699999988. A request then means the same
 * over every protocol, and a value at the edge of its range stays inside.
 */
export function asWritten(value: number | undefined): number | undefined {
  if (value === undefined || !Number.isFinite(value)) return value
  for (let digits = 6; digits < 9; digits++) {
    const decimal = Number(value.toPrecision(digits))
    if (Math.fround(decimal) === value) return decimal
  }
  return value
}

function definedOnly(fields: Body): Body {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}
