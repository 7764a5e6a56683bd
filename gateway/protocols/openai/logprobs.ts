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

/** `logprobs` of a completion choice or chunk; `offsets` as textOffsets has them. */
export function completionLogprobs(entries: readonly TokenLogprob[], offsets: readonly number[]): object {
  return {
    tokens: entries.map(({ token }) => token),
    token_logprobs: entries.map(({ logprob }) => (logprob === null ? null : finite(logprob))),
    top_logprobs: entries.map(topByText),
    text_offset: offsets,
  }
}

/** How far a token is looked for in the text, UTF-16 units: past what several tokens gave together, or lost. */
const SEARCH = 64

/**
 * Where each token begins in the text that these tokens gave, of which `offset` characters came before. A part of a character
 * begins where the character does; a token that is not shown, where it would be.
 */
export function textOffsets(entries: readonly TokenLogprob[], text: string, offset: number): number[] {
  let unit = 0
  let begin = offset
  return entries.map(({ token }) => {
    const found = text.startsWith(token, unit) ? 0 : text.slice(unit, unit + SEARCH + token.length).indexOf(token)
    if (found < 0) return begin
    const start = begin + codePoints(text.slice(unit, unit + found))
    unit += found + token.length
    begin = start + codePoints(token)
    return start
  })
}

/** Alternatives by their text, with the token itself among them, as the API promises; no prototype to run into. */
function topByText({ token, logprob, top }: TokenLogprob): Record<string, number> | null {
  if (logprob === null) return null
  const byText: Record<string, number> = Object.create(null)
  for (const other of top) byText[other.token] ??= finite(other.logprob)
  byText[token] ??= finite(logprob)
  return byText
}

/** Characters as Python clients count them for offsets, not UTF-16 units. */
export function codePoints(text: string): number {
  let count = 0
  for (const _ of text) count++
  return count
}
