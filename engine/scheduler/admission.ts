import type { SamplingParams, SequenceError, Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Sequence } from './sequence.js'

/** What a request is checked against. */
export interface AdmissionLimits {
  maxModelLen: number
  vocabSize: number
}

const MAX_TENANT_LENGTH = 256
const MAX_TOP_LOGPROBS = 20
const MAX_STOP_TOKENS = 1024
const MAX_BIASES = 4096
const MAX_MAGNITUDE = 1e6

/** Why a request cannot be run at all; undefined when it can. */
export function checkSubmit(submit: Submit, limits: AdmissionLimits): SequenceError | undefined {
  const fault = promptFault(submit, limits) ?? samplingFault(submit.sampling, limits)
  if (fault) return { code: 'invalid_request', message: fault, retryAfterMs: 0 }
  const room = limits.maxModelLen - submit.prompt.length
  if (room > 0 || (room === 0 && (submit.maxTokens === 0 || submit.replayedTokens > 0))) return undefined
  const message = `the prompt has ${submit.prompt.length} tokens; prompt and answer together may have ${limits.maxModelLen}`
  return { code: 'context_length_exceeded', message, retryAfterMs: 0 }
}

function promptFault(submit: Submit, { vocabSize }: AdmissionLimits): string | undefined {
  if (submit.prompt.length === 0) return 'the prompt is empty'
  const bad = submit.prompt.findIndex((token) => token >= vocabSize)
  if (bad >= 0) return `prompt[${bad}] is ${submit.prompt[bad]}; the vocabulary has ${vocabSize} tokens`
  if (submit.replayedTokens >= submit.prompt.length) return 'replayed_tokens leaves no prompt'
  if (submit.tenant.length > MAX_TENANT_LENGTH) return `tenant is longer than ${MAX_TENANT_LENGTH}`
  return undefined
}

/** Written so that NaN is out of range. */
function inRange(name: string, value: number, low: number, high: number): string | undefined {
  return value >= low && value <= high ? undefined : `${name} is ${value}; it must be in ${low}..${high}`
}

function samplingFault(sampling: SamplingParams | undefined, { vocabSize }: AdmissionLimits): string | undefined {
  if (!sampling) return 'sampling is missing'
  const known = (name: string, tokens: Iterable<number>): string | undefined => {
    for (const token of tokens) if (token >= vocabSize) return `${name}: ${token} is not below ${vocabSize}`
    return undefined
  }
  return (
    inRange('temperature', sampling.temperature, 0, MAX_MAGNITUDE) ??
    inRange('top_p', sampling.topP, 0, 1) ??
    inRange('min_p', sampling.minP, 0, 1) ??
    inRange('repetition_penalty', sampling.repetitionPenalty, 1 / MAX_MAGNITUDE, MAX_MAGNITUDE) ??
    inRange('presence_penalty', sampling.presencePenalty, -MAX_MAGNITUDE, MAX_MAGNITUDE) ??
    inRange('frequency_penalty', sampling.frequencyPenalty, -MAX_MAGNITUDE, MAX_MAGNITUDE) ??
    inRange('top_logprobs', sampling.topLogprobs ?? 0, 0, MAX_TOP_LOGPROBS) ??
    inRange('top_k', sampling.topK, 0, 2 ** 31 - 1) ??
    inRange('min_tokens', sampling.minTokens, 0, 2 ** 31 - 1) ??
    inRange('stop_token_ids', sampling.stopTokenIds.length, 0, MAX_STOP_TOKENS) ??
    inRange('logit_bias', sampling.logitBias.size, 0, MAX_BIASES) ??
    known('stop_token_ids', sampling.stopTokenIds) ??
    known('logit_bias', sampling.logitBias.keys()) ??
    [...sampling.logitBias.values()].reduce<string | undefined>(
      (fault, bias) => fault ?? inRange('logit_bias', bias, -MAX_MAGNITUDE, MAX_MAGNITUDE),
      undefined,
    )
  )
}

/**
 * Who leaves a full queue in favour of a newcomer: of the sequences with the worst priority, the newest of the tenant
 * that holds most of the queue; for a newcomer of the same priority only where that tenant holds clearly more than its
 * own. Undefined: the newcomer itself. Sequences that ran already, here or before a failover, are never shed.
 */
export function chooseShed(waiting: Iterable<Sequence>, priority: number, tenant: string): Sequence | undefined {
  const held = new Map<string, number>()
  const candidates: Sequence[] = []
  for (const sequence of waiting) {
    held.set(sequence.submit.tenant, heldBy(held, sequence.submit.tenant) + 1)
    const ran = sequence.firstScheduledAt !== undefined || sequence.submit.replayedTokens > 0
    if (!ran && sequence.submit.priority >= priority) candidates.push(sequence)
  }
  const shed = candidates.reduce<Sequence | undefined>(
    (worst, candidate) => (!worst || isWorse(candidate, worst, held) ? candidate : worst),
    undefined,
  )
  if (!shed || shed.submit.priority > priority) return shed
  return heldBy(held, shed.submit.tenant) > heldBy(held, tenant) + 1 ? shed : undefined
}

function isWorse(a: Sequence, b: Sequence, held: ReadonlyMap<string, number>): boolean {
  const order =
    a.submit.priority - b.submit.priority ||
    heldBy(held, a.submit.tenant) - heldBy(held, b.submit.tenant) ||
    a.arrival - b.arrival
  return order > 0
}

function heldBy(held: ReadonlyMap<string, number>, tenant: string): number {
  return held.get(tenant) ?? 0
}
