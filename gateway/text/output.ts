import { StopMatcher } from './stop-matcher.js'
import type { Detokenizer, OutputChunk, OutputOptions, OutputText } from './types.js'

const NOTHING: OutputChunk = Object.freeze({ text: '', tokens: 0, stopped: false })

/** Tokens in, text out: holds back what may become a stop string, and says which tokens each text completes. */
export class StreamOutput implements OutputText {
  readonly #detokenizer: Detokenizer
  readonly #matcher: StopMatcher
  readonly #minTokens: number
  /** Text not given out yet; it starts at unit `#given` of the text that counts for the matcher. */
  #held = ''
  #given = 0
  #pushed = 0
  /** Where the text of each token that was not given out begins and ends; oldest first. */
  #spans: { begin: number; end: number }[] = []
  #over = false

  constructor(detokenizer: Detokenizer, { stop, minTokens }: OutputOptions) {
    this.#detokenizer = detokenizer
    this.#matcher = new StopMatcher(stop)
    this.#minTokens = minTokens
  }

  push(id: number): OutputChunk {
    if (this.#over) return NOTHING
    const text = this.#detokenizer.push(id)
    const begin = this.#given + this.#held.length
    this.#spans.push({ begin, end: begin + text.length })
    this.#pushed++
    return this.#take(text)
  }

  finish(): OutputChunk {
    if (this.#over) return NOTHING
    const last = this.#take(this.#detokenizer.flush())
    if (last.stopped) return last
    this.#over = true
    const rest = this.#release(this.#given + this.#held.length)
    const tokens = last.tokens + rest.tokens + this.#spans.length
    return { text: last.text + rest.text, tokens, stopped: false }
  }

  #take(text: string): OutputChunk {
    if (text === '') return NOTHING
    this.#held += text
    if (this.#pushed <= this.#minTokens && this.#minTokens > 0) this.#matcher.skip(text)
    else {
      const match = this.#matcher.push(text)
      if (match !== undefined) return this.#stop(match.start)
    }
    return this.#release(this.#given + this.#held.length - this.#matcher.held)
  }

  /** Gives out the text before unit `end`, with the tokens whose text it completes. */
  #release(end: number): OutputChunk {
    if (end <= this.#given) return NOTHING
    const text = this.#held.slice(0, end - this.#given)
    this.#held = this.#held.slice(end - this.#given)
    this.#given = end
    // A token without text at the very end may be the first part of a character: it waits.
    const waiting = this.#spans.findIndex((span) => span.end > end || span.begin === end)
    const tokens = waiting < 0 ? this.#spans.length : waiting
    this.#spans.splice(0, tokens)
    return { text, tokens, stopped: false }
  }

  #stop(start: number): OutputChunk {
    this.#over = true
    const text = this.#held.slice(0, start - this.#given)
    const tokens = this.#spans.filter((span) => span.begin < start).length
    return { text, tokens, stopped: true }
  }
}
