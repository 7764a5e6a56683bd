/**
 * The one internal request type and the one internal event type. Protocol adapters decode into the first and
 * encode the second; they hold no other logic.
 */
import type { Grammar } from '../proto/gen/edgeshift/v1/grammar.js'
import type { GatewayError } from './errors.js'
import type { PrecisionWish } from './router/precision.js'

/** One chat message as the template sees it. */
export interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | 'tool'
  content: string
  name?: string
}

/** What the model is to continue. */
export type GenerateInput =
  | { kind: 'chat'; messages: ChatMessage[] }
  | { kind: 'text'; text: string }
  | { kind: 'tokens'; tokens: number[] }

/** Sampling fields after defaults; neutral values are those of SamplingParams in engine.proto. */
export interface Sampling {
  temperature: number
  topK: number
  topP: number
  minP: number
  repetitionPenalty: number
  presencePenalty: number
  frequencyPenalty: number
  /** Absent: drawn by the gateway, so that every request can be replayed. */
  seed?: number
  logitBias: Map<number, number>
  minTokens: number
  ignoreEos: boolean
  stopTokenIds: number[]
}

/** What a request asks of the rung that serves it; what is absent is not asked for. */
export interface Needs {
  /** The rung wanted; another one may serve it unless `degrade` forbids. */
  precision?: PrecisionWish
  /** The worst rung that may serve it. */
  minPrecision?: PrecisionWish
  /** Most bytes of weights and workspace that its rung may take. */
  memoryLimitBytes?: number
  /** 0 = quality alone counts, 1 = speed alone. */
  speedPriority?: number
  /** 0 (easy) to 1 (hard): the rung is chosen as for `auto`. Absent = the client did not leave the choice. */
  difficulty?: number
  /** `forbid`: the rung wanted (or the best one) or an error, also in mid-answer. */
  degrade?: 'allow' | 'forbid'
}

/** A decoded, validated generation request, independent of its protocol. */
export interface GenerateRequest extends Needs {
  /** Ours, unique. */
  id: string
  /** The client's own, cleaned: for the log only. */
  clientRequestId?: string
  /** As the client named it: id, id:rung or tag; what `auto` stands for is decided before. */
  model: string
  input: GenerateInput
  sampling: Sampling
  /** Stop strings: end the choice; they are not part of its text. */
  stop: string[]
  /** What each choice's text has to be; absent = any text. */
  grammar?: Grammar
  /** Absent: as much as the context allows. */
  maxTokens?: number
  /** Number of alternatives per token; absent = no log probabilities. */
  topLogprobs?: number
  /** The prompt is part of the answer (with its log probabilities when topLogprobs is set). */
  echo: boolean
  /** Choices; choice i samples with seed + i. */
  n: number
  /** Lower is served first; absent = as usual for its kind (urgency.ts). */
  priority?: number
  /** The client gets the answer as a whole: nobody reads along. */
  whole?: boolean
  /** Share of a busy box against other tenants'; absent = 1. */
  weight?: number
  /** Milliseconds from arrival; 0 = none. */
  deadlineMs: number
  /** Fairness and prefix-cache salt. */
  tenant: string
  /** `forbid`: never another rung than the one it began on. Absent = allow. */
  degrade?: 'allow' | 'forbid'
  traceparent?: string
}

/** One token's log probability as clients see it. */
export interface TokenLogprob {
  id: number
  /** Text of the token on its own (may hold U+FFFD for a part of a character). */
  token: string
  /** Natural log; null where undefined (the first prompt token). */
  logprob: number | null
  top: { id: number; token: string; logprob: number }[]
}

/** Token counts of a whole request, all choices. */
export interface Usage {
  promptTokens: number
  completionTokens: number
  cachedTokens: number
}

/** Why a request was continued elsewhere: the engine's process or stream ended, or the rung failed in a step. */
export type DegradeCause = 'engine_failed' | 'rung_failed'

/**
 * Events of one request, in order: started, then per choice text* finished, then usage. An error ends it instead. With
 * `echo` a choice's first text is the prompt, and nothing else.
 * A `degraded` between them says that it goes on elsewhere; nothing before it is taken back.
 */
export type GenerateEvent =
  | { type: 'started'; variant: string; reason: string }
  | { type: 'text'; index: number; text: string; tokens: number[]; logprobs?: TokenLogprob[] }
  | { type: 'finished'; index: number; reason: 'stop' | 'length' }
  | DegradedEvent
  | { type: 'usage'; usage: Usage }
  | { type: 'error'; error: GatewayError }

/** What began to answer the request was lost; the rest of the answer comes from `variant`. */
export interface DegradedEvent {
  type: 'degraded'
  /** The first choice that was still running. */
  index: number
  /** What serves it from here on, "model:rung"; the same rung when the engine came back with it. */
  variant: string
  /** Why this one. */
  reason: string
  cause: DegradeCause
  /** Tokens the client had already, which the engine read again as its own output; all choices. */
  replayedTokens: number
}

/**
 * Receives a request's events synchronously as they happen. What it throws becomes the request's error, but for usage
 * and error, which nothing follows.
 */
export type GenerateSink = (event: GenerateEvent) => void

/** A running request. Every method may be called at any time, also after the end. */
export interface GenerateHandle {
  /** Stops the work within one engine step; the sink gets an error event `cancelled` unless it had its end. */
  cancel(): void
  /** Back pressure: while paused the engine does not schedule the request's sequences. */
  pause(): void
  resume(): void
}

/** The pipeline behind every protocol: text, routing, engine. Errors come through the sink, never thrown. */
export interface Generator {
  generate(request: GenerateRequest, sink: GenerateSink): GenerateHandle
}
