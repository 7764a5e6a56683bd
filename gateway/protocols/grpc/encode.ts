/** Internal events and entries -> messages of gateway.proto. */
import type {
  GenerateEvent as EventMessage,
  GenerateResponse,
  Logprob,
  Model,
  ModelVariant,
  RouteResponse,
  Usage as UsageMessage,
} from '../../../proto/gen/edgeshift/v1/gateway.js'
import type { GenerateEvent, TokenLogprob, Usage } from '../../request.js'
import { LogprobBudget } from '../logprob-budget.js'
import type { DryRun } from '../../router/dry-run.js'
import type { ModelFacts, RungFacts } from '../../router/facts.js'
import { canServe, whyNotResident } from '../../router/standing.js'

/** Events that become a message; errors become the call's status. */
export type StreamedEvent = Exclude<GenerateEvent, { type: 'error' }>

/** A message without its number. */
type Unnumbered = Omit<EventMessage, 'number'>

/** One message per event; `id` is the request's, told once in `started`. */
export function encodeEvent(id: string, event: StreamedEvent): Unnumbered {
  switch (event.type) {
    case 'started':
      return { kind: { $case: 'started', started: { id, variant: event.variant, reason: event.reason } } }
    case 'text': {
      const { index, text, tokens } = event
      return { kind: { $case: 'delta', delta: { index, text, tokens, logprobs: encodeLogprobs(event.logprobs) } } }
    }
    case 'degraded': {
      const { variant, reason, cause, replayedTokens } = event
      return { kind: { $case: 'degraded', degraded: { variant, reason, cause, replayedTokens } } }
    }
    case 'finished':
      return { kind: { $case: 'finished', finished: { index: event.index, reason: event.reason } } }
    default:
      return { kind: { $case: 'usage', usage: encodeUsage(event.usage) } }
  }
}

/** proto3 floats have no null: an undefined log probability (the first prompt token's) is NaN. */
function encodeLogprobs(logprobs: readonly TokenLogprob[] | undefined): Logprob[] {
  if (!logprobs) return []
  return logprobs.map(({ id, token, logprob, top }) => ({
    id,
    token,
    logprob: logprob ?? Number.NaN,
    top: top.map((entry) => ({ ...entry, top: [] })),
  }))
}

function encodeUsage(usage: Usage): UsageMessage {
  return {
    promptTokens: usage.promptTokens,
    completionTokens: usage.completionTokens,
    cachedTokens: usage.cachedTokens,
  }
}

export function encodeModel(model: ModelFacts): Model {
  return {
    id: model.id,
    tags: model.tags,
    maxModelLen: model.maxModelLen,
    variants: model.variants.map(encodeVariant),
    rung: model.level ?? '',
    flapping: model.flapping,
  }
}

function encodeVariant(rung: RungFacts): ModelVariant {
  const { name, precision, state, weightBytes, device, neededBytes, pinned, breaker } = rung
  const why = whyNotResident(rung) ?? ''
  const facts = { name, precision, state, weightBytes, device, neededBytes, pinned }
  const { derivation, measured } = rung
  const card = { ...(derivation && { derivation }), ...(measured && { quality: measured }) }
  return { ...facts, serves: canServe(rung), why, breaker: breaker.state, ...card }
}

/** A dry run; what it does not say is absent or empty. */
export function encodeDryRun(run: DryRun): RouteResponse {
  const { model = '', variant = '', device = '', code = '', reason = '', why = '', load, rungs = [] } = run
  const { evicts = [], evicted_bytes: evictedBytes = 0 } = load ?? {}
  return {
    decision: run.decision,
    model,
    variant,
    device,
    code,
    reason,
    why,
    promptTokens: run.prompt_tokens,
    load: load ? { bytes: load.bytes, ms: load.ms, evicts, evictedBytes } : undefined,
    waitsFor: [...(run.waits_for ?? [])],
    waitMs: run.wait_ms,
    firstTokenMs: run.first_token_ms,
    answerMs: run.answer_ms,
    rungs: rungs.map(({ id, status, serves, needed_bytes: neededBytes, load_ms: loadMs, why: because = '' }) => ({
      id,
      status,
      serves,
      neededBytes,
      loadMs,
      why: because,
    })),
  }
}

/** Gathers a request's events into the answer of a unary call. Owns `n` choices and nothing else. */
export class ResponseBuilder {
  private readonly response: GenerateResponse
  private readonly budget = new LogprobBudget()

  constructor(id: string, n: number) {
    const choices = Array.from({ length: n }, (_, index) => ({
      index,
      text: '',
      finishReason: '',
      tokens: [],
      logprobs: [],
    }))
    this.response = { id, variant: '', reason: '', choices, usage: undefined, degraded: '' }
  }

  /** Throws invalid_request for more log probabilities than an answer may have. */
  add(event: StreamedEvent): void {
    const { response } = this
    if (event.type === 'started') {
      response.variant = event.variant
      response.reason = event.reason
    } else if (event.type === 'degraded') {
      response.variant = event.variant
      response.reason = event.reason
      response.degraded = event.cause
    } else if (event.type === 'usage') {
      response.usage = encodeUsage(event.usage)
    } else this.addToChoice(event)
  }

  /** The answer, complete once the usage event was added. */
  build(): GenerateResponse {
    return this.response
  }

  private addToChoice(event: Extract<StreamedEvent, { type: 'text' | 'finished' }>): void {
    const choice = this.response.choices[event.index]
    if (!choice) return
    if (event.type === 'finished') {
      choice.finishReason = event.reason
      return
    }
    choice.text += event.text
    for (const token of event.tokens) choice.tokens.push(token)
    if (!event.logprobs) return
    this.budget.spend(event.logprobs)
    // An echoed prompt is one event: too many for the arguments of one call.
    for (const logprob of encodeLogprobs(event.logprobs)) choice.logprobs.push(logprob)
  }
}
