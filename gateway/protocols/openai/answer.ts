/** Whole answers: events collected, then encoded once. */
import type { GenerateEvent, TokenLogprob, Usage } from '../../request.js'
import { LogprobBudget } from '../logprob-budget.js'
import { chatLogprobs, codePoints, completionLogprobs, textOffsets } from './logprobs.js'

/** What an answer says about itself, in body and headers. */
export interface Served {
  /** The request's id with the endpoint's prefix. */
  id: string
  /** Unix seconds. */
  created: number
  variant: string
}

/** One choice, complete or growing. */
interface Choice {
  text: string
  tokens: number[]
  logprobs: TokenLogprob[] | undefined
  /** Where the tokens of the log probabilities begin, characters, and characters of the text; both only with those. */
  offsets: number[]
  characters: number
  finishReason: 'stop' | 'length' | null
}

/** Collects the text, log probabilities and finish reasons of `count` choices. */
export class Collected {
  readonly choices: Choice[]
  readonly #budget = new LogprobBudget()

  constructor(count: number) {
    this.choices = Array.from({ length: count }, () => ({
      text: '',
      tokens: [],
      logprobs: undefined,
      offsets: [],
      characters: 0,
      finishReason: null,
    }))
  }

  /** Throws invalid_request for more log probabilities than an answer may have. */
  add(event: GenerateEvent): void {
    if (event.type !== 'text' && event.type !== 'finished') return
    const choice = this.choices[event.index]
    if (!choice) return
    if (event.type === 'finished') {
      choice.finishReason = event.reason
      return
    }
    choice.text += event.text
    // An echoed prompt is one event: too many for the arguments of one call.
    for (const token of event.tokens) choice.tokens.push(token)
    if (!event.logprobs) return
    this.#budget.spend(event.logprobs)
    choice.logprobs ??= []
    for (const logprob of event.logprobs) choice.logprobs.push(logprob)
    for (const offset of textOffsets(event.logprobs, event.text, choice.characters)) choice.offsets.push(offset)
    choice.characters += codePoints(event.text)
  }
}

/** `usage` as the API states it. */
export function encodeUsage({ promptTokens, completionTokens, cachedTokens }: Usage): object {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  }
}

/** Changes whenever the same seed could give another answer: with the rung. */
export function fingerprint(variant: string): string {
  return `fp-${variant}`
}

/** Encodes a whole answer of one endpoint. */
export type AnswerEncoder = (served: Served, answer: Collected, usage: Usage, includeTokenIds: boolean) => string

/** The body of a chat answer. */
export const encodeChatAnswer: AnswerEncoder = (served, { choices }, usage, includeTokenIds) =>
  encode('chat.completion', served, usage, choices.map(withTokenIds(chatChoice, includeTokenIds)))

/** The body of a completion answer. */
export const encodeCompletionAnswer: AnswerEncoder = (served, { choices }, usage, includeTokenIds) =>
  encode('text_completion', served, usage, choices.map(withTokenIds(completionChoice, includeTokenIds)))

type ChoiceEncoder = (choice: Choice, index: number) => object

function withTokenIds(encoder: ChoiceEncoder, include: boolean): ChoiceEncoder {
  return include ? (choice, index) => ({ ...encoder(choice, index), token_ids: choice.tokens }) : encoder
}

function encode(object: string, { id, created, variant }: Served, usage: Usage, choices: object[]): string {
  const system_fingerprint = fingerprint(variant)
  return JSON.stringify({ id, object, created, model: variant, system_fingerprint, choices, usage: encodeUsage(usage) })
}

function chatChoice({ text, logprobs, finishReason }: Choice, index: number): object {
  return {
    index,
    message: { role: 'assistant', content: text, refusal: null },
    logprobs: logprobs ? chatLogprobs(logprobs) : null,
    finish_reason: finishReason,
  }
}

function completionChoice({ text, logprobs, offsets, finishReason }: Choice, index: number): object {
  const json = logprobs ? completionLogprobs(logprobs, offsets) : null
  return { index, text, logprobs: json, finish_reason: finishReason }
}
