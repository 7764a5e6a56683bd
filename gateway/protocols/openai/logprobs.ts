/** Log probabilities in the two shapes of the OpenAI API. */
import type { TokenLogprob } from '../../request.js'

/** What OpenAI answers for a probability too small to state; JSON has no -Infinity. */
const LEAST = -9999

function finite(logprob: number): number {
  return Number.isFinite(logprob) ? logprob : LEAST
}

/** UTF-8 bytes of a token; null for a part of a character, whose bytes the text does not tell. */
function bytesOf(token: string): number[] | null {
  return token.includes('\uFFFD') ? null : [...Buffer.from(token)]
}

/** `logprobs` of a chat choice or chunk. */
export function chatLogprobs(entries: readonly TokenLogprob[]): object {
  return {
    content: entries.map(({ token, logprob, top }) => ({
      token,
      logprob: finite(logprob ?? LEAST),
      bytes: bytesOf(token),
      top_logprobs: top.map((other) => ({
        token: other.token,
        logprob: finite(other.logprob),
        bytes: bytesOf(other.token),
      })),
    })),
    refusal: null,
  }
}

/** `logprobs` of a completion choice or chunk, and the text offset after its last token. */
export function completionLogprobs(entries: readonly TokenLogprob[], offset: number): { json: object; end: number } {
  let end = offset
  const textOffsets = entries.map(({ token }) => {
    const start = end
    end += codePoints(token)
    return start
  })
  const json = {
    tokens: entries.map(({ token }) => token),
    token_logprobs: entries.map(({ logprob }) => (logprob === null ? null : finite(logprob))),
    top_logprobs: entries.map(topByText),
    text_offset: textOffsets,
  }
  return { json, end }
}

/** Alternatives by their text, with the token itself among them, as the API promises; no prototype to run into. */
function topByText({ token, logprob, top }: TokenLogprob): Record<string, number> | null {
  if (logprob === null) return null
  const byText: Record<string, number> = Object.create(null)
  for (const other of top) byText[other.token] ??= finite(other.logprob)
  byText[token] ??= finite(logprob)
  return byText
}

/** Offsets count characters as Python clients do, not UTF-16 units. */
function codePoints(text: string): number {
  let count = 0
  for (const _ of text) count++
  return count
}
