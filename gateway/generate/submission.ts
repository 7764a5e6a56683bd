import { randomUUID } from 'node:crypto'
import type { Submission } from '../engine-client/session.js'
import { GatewayError } from '../errors.js'
import type { GenerateRequest, Sampling } from '../request.js'
import type { TextModel } from '../text/types.js'
import { priorityOf } from '../urgency.js'

/** Seeds are unsigned 53-bit: the largest range that a number holds exactly. */
const SEED_RANGE = 2 ** 53

/** A random seed, for requests that bring none. */
export function drawSeed(): number {
  return Math.floor(Math.random() * SEED_RANGE)
}

/** Choice `index`'s seed: seed + index in 53 bits; negative seeds wrap. */
export function choiceSeed(seed: number, index: number): number {
  const sum = ((seed % SEED_RANGE) + index) % SEED_RANGE
  return sum < 0 ? sum + SEED_RANGE : sum
}

/**
 * Tokens that the answer may have: what was asked for, or what the context leaves.
 * Throws context_length_exceeded when prompt and answer do not fit into `limit`: nothing is ever truncated.
 */
export function answerBudget(
  promptTokens: number,
  maxTokens: number | undefined,
  limit: number,
  variant: string,
): number {
  const budget = maxTokens ?? limit - promptTokens
  const asked = maxTokens === undefined ? '' : ` and max_tokens is ${maxTokens}`
  if (promptTokens + budget > limit || (maxTokens === undefined && budget < 1)) {
    throw new GatewayError(
      'context_length_exceeded',
      `the prompt has ${promptTokens} tokens${asked}, but '${variant}' has a context of ${limit} tokens`,
      { param: maxTokens !== undefined && promptTokens < limit ? 'max_tokens' : 'prompt' },
    )
  }
  return budget
}

/**
 * Tokens that a choice may still have on a rung with this context: what is left of its `budget`, or of the context
 * where the budget came from one (`bounded` false). Throws context_length_exceeded like answerBudget.
 */
export function remainingBudget(
  length: { prompt: number; generated: number },
  budget: number,
  bounded: boolean,
  limit: number,
  variant: string,
): number {
  const left = budget - length.generated
  const room = limit - length.prompt - length.generated
  if (left <= room) return left
  if (!bounded) return Math.max(0, room)
  return answerBudget(length.prompt, budget, limit, variant)
}

/** Throws invalid_request when a token id that the client wrote is outside the vocabulary. */
export function checkTokenIds(request: GenerateRequest, vocabSize: number): void {
  const check = (ids: Iterable<number>, param: string): void => {
    for (const id of ids) {
      if (Number.isInteger(id) && id >= 0 && id < vocabSize) continue
      throw new GatewayError(
        'invalid_request',
        `${param}: token id ${id} is outside the vocabulary (0..${vocabSize - 1})`,
        {
          param,
        },
      )
    }
  }
  if (request.input.kind === 'tokens') check(request.input.tokens, 'prompt')
  check(request.sampling.stopTokenIds, 'stop_token_ids')
  check(request.sampling.logitBias.keys(), 'logit_bias')
}

/** Ids that end a sequence: the client's own, and the model's unless it asked to go on past them. */
function stopTokens(sampling: Sampling, eosTokenIds: readonly number[]): number[] {
  if (sampling.ignoreEos) return sampling.stopTokenIds
  return [...new Set([...eosTokenIds, ...sampling.stopTokenIds])]
}

/** What a choice has been given already. */
interface Progress {
  index: number
  /** Its output so far. */
  generated: readonly number[]
  /** The prompt's log probabilities were told. */
  started: boolean
}

/**
 * What a choice of a request is to the engine: its prompt and what it has been answered, which counts as output for
 * penalties, min_tokens and the position of its random numbers. `maxTokens` and `deadlineMs` are what is left of them.
 */
export function toSubmission(
  request: GenerateRequest,
  { index, generated, started }: Progress,
  prompt: number[],
  seed: number,
  resolved: { variant: string; maxTokens: number; deadlineMs: number; text: TextModel },
): Submission {
  const { sampling } = request
  return {
    variant: resolved.variant,
    prompt: generated.length === 0 ? prompt : [...prompt, ...generated],
    maxTokens: resolved.maxTokens,
    priority: priorityOf(request),
    tenant: request.tenant,
    weight: request.weight ?? 1,
    deadlineMs: resolved.deadlineMs,
    traceparent: request.traceparent ?? '',
    replayedTokens: generated.length,
    promptLogprobs: request.echo && request.topLogprobs !== undefined && !started,
    grammar: request.grammar,
    sampling: {
      temperature: sampling.temperature,
      topK: sampling.topK,
      topP: sampling.topP,
      minP: sampling.minP,
      repetitionPenalty: sampling.repetitionPenalty,
      presencePenalty: sampling.presencePenalty,
      frequencyPenalty: sampling.frequencyPenalty,
      seed: choiceSeed(seed, index),
      logitBias: sampling.logitBias,
      stopTokenIds: stopTokens(sampling, resolved.text.eosTokenIds),
      minTokens: sampling.minTokens,
      topLogprobs: request.topLogprobs,
    },
  }
}

/** A W3C traceparent (version 00, sampled) for a request that brings none. */
export function newTraceparent(): string {
  // UUIDs come from a pool of random bytes: a tenth of randomBytes' cost.
  const trace = randomUUID().replaceAll('-', '')
  return `00-${trace}-${randomUUID().replaceAll('-', '').slice(0, 16)}-01`
}
