import { FinishReason, type SequenceDelta, type SequenceStart } from '../../proto/gen/edgeshift/v1/engine.js'
import type { TokenLogprob as EngineLogprob } from '../../proto/gen/edgeshift/v1/engine.js'
import type { SequenceListener } from '../engine-client/session.js'
import { type ErrorCode, GatewayError, isErrorCode, toGatewayError } from '../errors.js'
import type { DegradeCause, TokenLogprob } from '../request.js'
import type { OutputText, TextModel } from '../text/types.js'

/** What a choice tells its request. Called synchronously, in order. */
export interface ChoiceOwner {
  onStart(choice: Choice, start: SequenceStart): void
  /** `count` tokens arrived, before their text is told. */
  onTokens(choice: Choice, count: number): void
  onText(choice: Choice, text: string, tokens: number[], logprobs: TokenLogprob[] | undefined): void
  onFinished(choice: Choice, reason: 'stop' | 'length'): void
  /** A stop string was found: the engine must stop the sequence. Comes before onFinished. */
  onStopString(choice: Choice): void
  onFailed(error: GatewayError): void
  /** Its sequence is gone for no fault of the request: it can be submitted again. `error` is what that was. */
  onLost(choice: Choice, cause: DegradeCause, error: GatewayError): void
}

/** The prompt as it is shown in front of the answer. */
export interface Echo {
  text: string
  tokens: number[]
}

/** A log probability of the engine with its tokens' texts; NaN (the first prompt token has none) becomes null. */
export function toLogprob(text: TextModel, entry: EngineLogprob): TokenLogprob {
  return {
    id: entry.token,
    token: text.tokenText(entry.token),
    logprob: Number.isNaN(entry.logprob) ? null : entry.logprob,
    top: entry.topTokens.map((id, i) => ({
      id,
      token: text.tokenText(id),
      logprob: entry.topLogprobs[i] ?? Number.NEGATIVE_INFINITY,
    })),
  }
}

/** Refusals that say how the rung is, not what is wrong with the request. */
const RUNG_FAILURES: ReadonlySet<ErrorCode> = new Set(['engine_unavailable', 'loading', 'shutting_down'])

/** True when the sequence could be answered elsewhere, or by the same rung when it is well again. */
function isRungFailure({ finishReason }: SequenceDelta, { code }: GatewayError): boolean {
  return finishReason === FinishReason.ERROR || (finishReason === FinishReason.REJECTED && RUNG_FAILURES.has(code))
}

/** The client's error for a sequence that ended without an answer. */
function failure(delta: SequenceDelta): GatewayError | undefined {
  switch (delta.finishReason) {
    case FinishReason.UNSPECIFIED:
    case FinishReason.STOP:
    case FinishReason.LENGTH:
      return undefined
    case FinishReason.CANCELLED:
      return new GatewayError('cancelled', 'the request was cancelled')
    case FinishReason.DEADLINE:
      return new GatewayError('deadline_exceeded', 'the deadline passed before the answer was complete')
    default: {
      const { code = 'internal', message = 'the engine failed', retryAfterMs = 0 } = delta.error ?? {}
      const details = retryAfterMs > 0 ? { retryAfterMs } : {}
      return new GatewayError(isErrorCode(code) ? code : 'internal', message, details)
    }
  }
}

/**
 * One choice of a request: token ids in, text out. Tokens (and their log probabilities) are told with the text
 * they complete; the token that ended the choice gives no text and is told last. Its decoding state lives here, not in
 * the engine, so that another sequence can go on where one was lost.
 */
export class Choice implements SequenceListener {
  readonly index: number
  /** When its last tokens came, in the owner's clock; kept by the owner. */
  lastTokensAt = -1
  /** Every token that came from the engine, also those whose text is held back. */
  readonly generated: number[] = []
  /** Tokens it had at the crash that counts (trial.ts); kept by the owner. */
  mark = 0
  readonly #owner: ChoiceOwner
  readonly #text: TextModel
  readonly #output: OutputText
  readonly #echo: Echo | undefined
  readonly #wantLogprobs: boolean
  #started = false
  /** Tokens whose text is held back. */
  #heldTokens: number[] = []
  #heldLogprobs: TokenLogprob[] = []

  constructor(
    index: number,
    owner: ChoiceOwner,
    text: TextModel,
    output: OutputText,
    show: { echo: Echo | undefined; logprobs: boolean },
  ) {
    this.index = index
    this.#owner = owner
    this.#text = text
    this.#output = output
    this.#echo = show.echo
    this.#wantLogprobs = show.logprobs
  }

  /** The engine has told its start: the prompt's log probabilities are not wanted again. */
  get started(): boolean {
    return this.#started
  }

  /** A failure in here is this request's: the session has others to tell. */
  onDelta(delta: SequenceDelta): void {
    try {
      this.#take(delta)
    } catch (error) {
      this.#owner.onFailed(toGatewayError(error))
    }
  }

  onLost(error: GatewayError): void {
    this.#owner.onLost(this, 'engine_failed', error)
  }

  #take(delta: SequenceDelta): void {
    const failed = failure(delta)
    if (failed && isRungFailure(delta, failed)) return this.#owner.onLost(this, 'rung_failed', failed)
    if (failed) return this.#owner.onFailed(failed)
    if (!this.#started) this.#start(delta)
    if (delta.tokens.length > 0 && this.#takeTokens(delta)) return
    if (delta.finishReason === FinishReason.UNSPECIFIED) return
    this.#finish(delta.finishReason === FinishReason.STOP ? 'stop' : 'length')
  }

  #start(delta: SequenceDelta): void {
    this.#started = true
    this.#owner.onStart(this, delta.start ?? { cachedTokens: 0, queueUs: 0 })
    if (this.#echo === undefined) return
    const logprobs = this.#wantLogprobs ? delta.promptLogprobs.map((entry) => toLogprob(this.#text, entry)) : undefined
    this.#owner.onText(this, this.#echo.text, this.#echo.tokens, logprobs)
  }

  /** Reads a step's tokens; true when a stop string ended the choice. */
  #takeTokens(delta: SequenceDelta): boolean {
    const { tokens } = delta
    // The token that stopped the sequence gives no text.
    const shown = delta.finishReason === FinishReason.STOP ? tokens.length - 1 : tokens.length
    let text = ''
    let completed = 0
    let read = 0
    let stopped = false
    while (read < shown && !stopped) {
      const chunk = this.#output.push(tokens[read++] ?? 0)
      text += chunk.text
      completed += chunk.tokens
      stopped = chunk.stopped
    }
    this.#hold(delta, stopped ? read : tokens.length)
    if (stopped) this.#owner.onStopString(this)
    if (text !== '' || completed > 0) this.#emit(text, completed)
    if (stopped) this.#owner.onFinished(this, 'stop')
    return stopped
  }

  /** Counts the delta's first `count` tokens in and keeps them until their text is complete. */
  #hold(delta: SequenceDelta, count: number): void {
    for (let i = 0; i < count; i++) this.generated.push(delta.tokens[i] ?? 0)
    this.#owner.onTokens(this, count)
    const tokens = count === delta.tokens.length ? delta.tokens : delta.tokens.slice(0, count)
    // The usual case costs no copy: nothing was held back, so the delta's own array is handed on.
    if (this.#heldTokens.length === 0) this.#heldTokens = tokens
    else for (const token of tokens) this.#heldTokens.push(token)
    if (!this.#wantLogprobs) return
    for (let i = 0; i < count; i++) {
      const entry = delta.logprobs[i]
      if (entry) this.#heldLogprobs.push(toLogprob(this.#text, entry))
    }
  }

  #emit(text: string, completed: number): void {
    const held = this.#heldTokens
    const tokens = completed === held.length ? held : held.slice(0, completed)
    this.#heldTokens = completed === held.length ? [] : held.slice(completed)
    const logprobs = this.#wantLogprobs ? this.#heldLogprobs.splice(0, completed) : undefined
    this.#owner.onText(this, text, tokens, logprobs)
  }

  #finish(reason: 'stop' | 'length'): void {
    const { text } = this.#output.finish()
    if (text !== '' || this.#heldTokens.length > 0) this.#emit(text, this.#heldTokens.length)
    this.#owner.onFinished(this, reason)
  }
}

/** No token is wanted and no figure of the prompt's: there is nothing for the engine to do. */
export function answerEmpty(choice: Choice): void {
  const finishReason = FinishReason.LENGTH
  choice.onDelta({ sequenceId: 0, tokens: [], logprobs: [], promptLogprobs: [], finishReason })
}
