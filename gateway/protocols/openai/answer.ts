/** Whole answers: events collected, then encoded once. */
import type { GenerateEvent, TokenLogprob, Usage } from '../../request.js'
import { chatLogprobs, completionLogprobs } from './logprobs.js'

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
  logprobs: TokenLogprob[] | undefined
  finishReason: 'stop' | 'length' | null
}

/** Collects the text, log probabilities and finish reasons of `count` choices. */
export class Collected {
  readonly choices: Choice[]

  constructor(count: number) {
    this.choices = Array.from({ length: count }, () => ({ text: '', logprobs: undefined, finishReason: null }))
  }

  add(event: GenerateEvent): void {
    if (event.type !== 'text' && event.type !== 'finished') return
    const choice = this.choices[event.index]
    if (!choice) return
    if (event.type === 'finished') {
      choice.finishReason = event.reason
      return
    }
    choice.text += event.text
    if (event.logprobs) (choice.logprobs ??= []).push(...event.logprobs)
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
export type AnswerEncoder = (served: Served, answer: Collected, usage: Usage) => string

/** The body of a chat answer. */
export const encodeChatAnswer: AnswerEncoder = (served, { choices }, usage) =>
  encode('chat.completion', served, usage, choices.map(chatChoice))

/** The body of a completion answer. */
export const encodeCompletionAnswer: AnswerEncoder = (served, { choices }, usage) =>
  encode('text_completion', served, usage, choices.map(completionChoice))

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

function completionChoice({ text, logprobs, finishReason }: Choice, index: number): object {
  const json = logprobs ? completionLogprobs(logprobs, 0).json : null
  return { index, text, logprobs: json, finish_reason: finishReason }
}
