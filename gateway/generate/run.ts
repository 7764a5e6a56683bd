import { randomUUID } from 'node:crypto'
import type { SequenceStart } from '../../proto/gen/edgeshift/v1/engine.js'
import type { EngineSession } from '../engine-client/session.js'
import { GatewayError, toGatewayError } from '../errors.js'
import type { GenerateEvent, GenerateHandle, GenerateRequest, GenerateSink, TokenLogprob, Usage } from '../request.js'
import type { Route } from '../router/route.js'
import type { TextModel } from '../text/types.js'
import { Choice, type ChoiceOwner, type Echo } from './choice.js'
import { answerBudget, checkTokenIds, drawSeed, toSubmission } from './submission.js'

/** The part of a session that requests need. */
export type SequenceSession = Pick<EngineSession, 'submit' | 'cancel' | 'setPaused'>

/** Where a request may run now. */
export interface Placement {
  session: SequenceSession
  route: Route
  /** Tokens of prompt and answer together. */
  contextLimit: number
}

/** What a run needs from around it. Each wait ends early when `signal` aborts, then with `cancelled`. */
export interface RunEnvironment {
  /** The text side of the named model; waits for it while the box starts. */
  textModel(name: string, signal: () => AbortSignal): TextModel | Promise<TextModel>
  /** A rung and a session; waits for them up to `timeoutMs` (0 = the configured bound). */
  placement(name: string, timeoutMs: number, signal: () => AbortSignal): Placement | Promise<Placement>
  /** Milliseconds, monotonic. */
  now(): number
  /** Largest prompt that is taken at all. */
  maxPromptTokens: number
  observer: RunObserver
}

/** A run's figures, all in milliseconds of `now`; -1 = did not happen. */
export interface RunRecord {
  request: GenerateRequest
  route: Route | undefined
  arrivedAt: number
  submittedAt: number
  firstTokenAt: number
  endedAt: number
  queueUs: number
  usage: Usage
}

/** Metrics and logs of runs. */
export interface RunObserver {
  onArrival(record: RunRecord): void
  /** The prompt's length and the route are known and its choices go to the engine. */
  onSubmit(record: RunRecord): void
  onFirstToken(record: RunRecord): void
  /** `count` tokens of one choice came `gapMs` after the ones before; a negative gap: they are its first. */
  onTokens(record: RunRecord, count: number, gapMs: number): void
  /** Undefined: the answer is complete. */
  onEnd(record: RunRecord, error: GatewayError | undefined): void
}

/**
 * One request from arrival to its last event: encodes, places, submits its choices, and turns their news into
 * events. Owns its sequences: whatever ends it cancels those still running.
 */
export class Run implements GenerateHandle, ChoiceOwner {
  readonly record: RunRecord
  readonly #env: RunEnvironment
  readonly #sink: GenerateSink
  readonly #request: GenerateRequest
  #abort: AbortController | undefined
  #session: SequenceSession | undefined
  /** Sequence id by choice; 0 once the choice is over. */
  #sequenceIds: number[] = []
  #running = 0
  #started = false
  #ended = false
  #paused = false

  constructor(env: RunEnvironment, request: GenerateRequest, sink: GenerateSink) {
    this.#env = env
    this.#request = request.traceparent === undefined ? { ...request, traceparent: newTraceparent() } : request
    this.#sink = sink
    const usage = { promptTokens: 0, completionTokens: 0, cachedTokens: 0 }
    const never = { submittedAt: -1, firstTokenAt: -1, endedAt: -1 }
    this.record = { request: this.#request, route: undefined, arrivedAt: env.now(), ...never, queueUs: 0, usage }
    env.observer.onArrival(this.record)
  }

  /** Begins the work; every failure goes to the sink, never before the caller has its handle. */
  async start(): Promise<void> {
    try {
      await this.#prepare()
    } catch (error) {
      this.onFailed(toGatewayError(error))
    }
  }

  cancel(): void {
    // Adapters cancel whatever ended, too, and an error's stack costs more than all else here.
    if (this.#ended) return
    this.onFailed(new GatewayError('cancelled', 'the request was cancelled'))
  }

  pause(): void {
    this.#setPaused(true)
  }

  resume(): void {
    this.#setPaused(false)
  }

  onStart(choice: Choice, start: SequenceStart): void {
    if (choice.index === 0) this.record.usage.cachedTokens = start.cachedTokens
    if (this.#started) return
    this.#started = true
    this.record.queueUs = start.queueUs
    const { variant = '', reason = '' } = this.record.route ?? {}
    this.#emit({ type: 'started', variant, reason })
  }

  onTokens(choice: Choice, count: number): void {
    const now = this.#env.now()
    const { record } = this
    record.usage.completionTokens += count
    if (record.firstTokenAt < 0) {
      record.firstTokenAt = now
      this.#env.observer.onFirstToken(record)
    }
    this.#env.observer.onTokens(record, count, choice.lastTokensAt < 0 ? -1 : now - choice.lastTokensAt)
    choice.lastTokensAt = now
  }

  onText(choice: Choice, text: string, tokens: number[], logprobs: TokenLogprob[] | undefined): void {
    const { index } = choice
    this.#emit(logprobs ? { type: 'text', index, text, tokens, logprobs } : { type: 'text', index, text, tokens })
  }

  onStopString(choice: Choice): void {
    this.#cancelSequence(choice.index)
  }

  onFinished(choice: Choice, reason: 'stop' | 'length'): void {
    this.#sequenceIds[choice.index] = 0
    this.#emit({ type: 'finished', index: choice.index, reason })
    if (--this.#running === 0) this.#complete()
  }

  onFailed(error: GatewayError): void {
    if (this.#ended) return
    this.#end(error)
    this.#sink({ type: 'error', error })
  }

  async #prepare(): Promise<void> {
    const { model } = this.#request
    // Awaiting only what is a promise keeps the usual case in one turn of the event loop.
    const found = this.#env.textModel(model, this.#signal)
    const text = found instanceof Promise ? await found : found
    checkTokenIds(this.#request, text.vocabSize)
    const prompt = await encode(this.#request, text)
    if (this.#ended) return
    this.record.usage.promptTokens = prompt.length
    this.#checkPrompt(prompt)
    const place = this.#env.placement(model, this.#remainingMs(), this.#signal)
    const placement = place instanceof Promise ? await place : place
    if (!this.#ended) this.#submit(prompt, text, placement)
  }

  #checkPrompt(prompt: readonly number[]): void {
    if (prompt.length === 0) throw new GatewayError('invalid_request', 'the prompt has no tokens', { param: 'prompt' })
    const limit = this.#env.maxPromptTokens
    if (prompt.length <= limit) return
    throw new GatewayError('context_length_exceeded', `the prompt has ${prompt.length} tokens, more than ${limit}`, {
      param: 'prompt',
    })
  }

  #submit(prompt: number[], text: TextModel, { session, route, contextLimit }: Placement): void {
    const request = this.#request
    const maxTokens = answerBudget(prompt.length, request.maxTokens, contextLimit, route.variant)
    const resolved = { variant: route.variant, maxTokens, deadlineMs: this.#remainingMs(), text }
    const echo = request.echo ? echoOf(request, prompt, text) : undefined
    this.record.route = route
    this.record.submittedAt = this.#env.now()
    this.#env.observer.onSubmit(this.record)
    this.#session = session
    this.#running = request.n
    const seed = request.sampling.seed ?? drawSeed()
    for (let index = 0; index < request.n && !this.#ended; index++) {
      const choice = this.#newChoice(index, text, echo)
      if (maxTokens === 0 && !(echo && request.topLogprobs !== undefined)) this.#answerEmpty(choice)
      else this.#sequenceIds[index] = session.submit(toSubmission(request, index, prompt, seed, resolved), choice)
    }
    if (this.#paused) this.#setPaused(true)
  }

  #newChoice(index: number, text: TextModel, echo: Echo | undefined): Choice {
    const { stop, sampling, topLogprobs } = this.#request
    const output = text.newOutput({ stop, minTokens: sampling.minTokens, skipSpecial: true })
    return new Choice(index, this, text, output, { echo, logprobs: topLogprobs !== undefined })
  }

  /** No token is wanted and no figure of the prompt's: there is nothing for the engine to do. */
  #answerEmpty(choice: Choice): void {
    choice.onDelta({
      sequenceId: 0,
      tokens: [],
      logprobs: [],
      promptLogprobs: [],
      finishReason: 2,
    })
  }

  /** Milliseconds left of the deadline, at least 1; 0 = it has none. */
  #remainingMs(): number {
    const { deadlineMs } = this.#request
    if (deadlineMs === 0) return 0
    const left = deadlineMs - (this.#env.now() - this.record.arrivedAt)
    if (left < 1) throw new GatewayError('deadline_exceeded', 'the deadline passed before the request could run')
    return Math.floor(left)
  }

  readonly #signal = (): AbortSignal => {
    this.#abort ??= new AbortController()
    return this.#abort.signal
  }

  #setPaused(paused: boolean): void {
    if (this.#ended) return
    this.#paused = paused
    for (const id of this.#sequenceIds) if (id) this.#session?.setPaused(id, paused)
  }

  #cancelSequence(index: number): void {
    const id = this.#sequenceIds[index]
    if (id) this.#session?.cancel(id)
    this.#sequenceIds[index] = 0
  }

  #emit(event: GenerateEvent): void {
    if (!this.#ended) this.#sink(event)
  }

  #complete(): void {
    if (this.#ended) return
    this.#end(undefined)
    this.#sink({ type: 'usage', usage: this.record.usage })
  }

  #end(error: GatewayError | undefined): void {
    this.#ended = true
    this.#abort?.abort()
    for (let index = 0; index < this.#sequenceIds.length; index++) this.#cancelSequence(index)
    this.record.endedAt = this.#env.now()
    this.#env.observer.onEnd(this.record, error)
  }
}

/** A W3C traceparent (version 00, sampled) for a request that brings none. */
function newTraceparent(): string {
  // UUIDs come from a pool of random bytes: a tenth of randomBytes' cost.
  const trace = randomUUID().replaceAll('-', '')
  return `00-${trace}-${randomUUID().replaceAll('-', '').slice(0, 16)}-01`
}

/** The request's prompt as token ids. */
function encode({ input, tenant }: GenerateRequest, text: TextModel): number[] | Promise<number[]> {
  if (input.kind === 'tokens') return input.tokens
  return input.kind === 'chat' ? text.encodeChat(input.messages, tenant) : text.encodePrompt(input.text, tenant)
}

/** The prompt as the client wrote it, or its decoded text when it was ids or a conversation. */
function echoOf({ input }: GenerateRequest, tokens: number[], text: TextModel): Echo {
  return { text: input.kind === 'text' ? input.text : text.decode(tokens, false), tokens }
}
