import type { SequenceStart } from '../../proto/gen/edgeshift/v1/engine.js'
import { GatewayError, toGatewayError } from '../errors.js'
import type {
  DegradeCause,
  GenerateEvent,
  GenerateHandle,
  GenerateRequest,
  GenerateSink,
  TokenLogprob,
} from '../request.js'
import type { Lost, Route } from '../router/facts.js'
import type { TextModel } from '../text/types.js'
import { answerEmpty, Choice, type ChoiceOwner, type Echo } from './choice.js'
import { Flight, type Placement, type SequenceSession } from './flight.js'
import { type Loss, Losses } from './losses.js'
import type { RunObserver, RunRecord } from './observer.js'
import { echoOf, encode } from './prompt.js'
import { answerBudget, checkTokenIds, drawSeed, newTraceparent } from './submission.js'
import { CLEAR_TOKENS, Standing, type TrialGate } from './trial.js'

/** What a run needs from around it. Each wait ends early when `signal` aborts, then with `cancelled`. */
export interface RunEnvironment {
  /** The text side of the named model; waits for it while the box starts. */
  textModel(name: string, signal: () => AbortSignal): TextModel | Promise<TextModel>
  /** A rung and a session; waits for them up to `deadlineMs` (0 = none) and the configured bound. */
  placement(
    request: GenerateRequest,
    promptTokens: number,
    deadlineMs: number,
    signal: () => AbortSignal,
  ): Placement | Promise<Placement>
  /** Where a request goes on that was lost; waits longer than `placement`, since the request was accepted. */
  nextPlacement(lost: Lost, signal: () => AbortSignal): Placement | Promise<Placement>
  /** A place was found, but nothing is sent there, or no end will be told of it: where the route was a probe, another request may be it. */
  unsent(route: Route): void
  /** Resolves when it is known whether the session's engine outlived what it just reported; `stopping`: when it is gone. */
  engineSettled(session: SequenceSession, stopping: boolean, signal: () => AbortSignal): Promise<void>
  /** Milliseconds, monotonic. */
  now(): number
  /** Largest prompt that is taken at all. */
  maxPromptTokens: number
  observer: RunObserver
  gate: TrialGate
}

/**
 * One request from arrival to its last event: encodes, places, submits its choices, and turns their news into
 * events; goes on where it can when the engine or the rung fails. Owns its sequences: whatever ends it cancels those
 * still running.
 */
export class Run implements GenerateHandle, ChoiceOwner {
  readonly record: RunRecord
  readonly #env: RunEnvironment
  readonly #sink: GenerateSink
  readonly #request: GenerateRequest
  readonly #standing = new Standing()
  readonly #losses = new Losses()
  #abort: AbortController | undefined
  #flight: Flight | undefined
  /** Where it goes next, until the record says that it went there. */
  #placed: Route | undefined
  /** Those not finished. */
  readonly #choices = new Set<Choice>()
  #started = false
  #ended = false
  #paused = false

  constructor(env: RunEnvironment, request: GenerateRequest, sink: GenerateSink) {
    this.#env = env
    this.#request = request.traceparent === undefined ? { ...request, traceparent: newTraceparent() } : request
    this.#sink = sink
    const usage = { promptTokens: 0, completionTokens: 0, cachedTokens: 0 }
    const never = { submittedAt: -1, firstTokenAt: -1, endedAt: -1 }
    const none = { route: undefined, queueUs: 0, failovers: 0 }
    this.record = { request: this.#request, arrivedAt: env.now(), ...never, ...none, usage }
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
    const at = this.#flight?.routeOf(choice)
    record.usage.completionTokens += count
    if (record.firstTokenAt < 0) {
      record.firstTokenAt = now
      this.#env.observer.onFirstToken(record, at)
    }
    this.#env.observer.onTokens(record, at, count, choice.lastTokensAt < 0 ? -1 : now - choice.lastTokensAt)
    choice.lastTokensAt = now
    if (!this.#standing.clear) this.#progressed()
  }

  onText(choice: Choice, text: string, tokens: number[], logprobs: TokenLogprob[] | undefined): void {
    const { index } = choice
    this.#emit(logprobs ? { type: 'text', index, text, tokens, logprobs } : { type: 'text', index, text, tokens })
  }

  onStopString(choice: Choice): void {
    this.#flight?.cancel(choice.index)
  }

  onFinished(choice: Choice, reason: 'stop' | 'length'): void {
    this.#flight?.forget(choice)
    this.#choices.delete(choice)
    this.#emit({ type: 'finished', index: choice.index, reason })
    if (this.#choices.size === 0) this.#complete()
  }

  onFailed(error: GatewayError): void {
    if (this.#ended) return
    this.#end(error)
    this.#sink({ type: 'error', error })
  }

  onLost(choice: Choice, cause: DegradeCause, error: GatewayError): void {
    if (this.#ended) return
    const at = this.#flight?.forget(choice)
    if (at === undefined) return
    if (cause === 'engine_failed') this.#blame(at.session)
    // All choices of one failure are told in one turn; those that fail while it is dealt with go on with them.
    if (this.#losses.add(choice)) void this.#recover({ at, cause, error })
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
    const placement = await this.#place(() =>
      this.#env.placement(this.#request, prompt.length, this.#remainingMs(), this.#signal),
    )
    if (placement) this.#begin(prompt, text, placement)
  }

  #checkPrompt(prompt: readonly number[]): void {
    if (prompt.length === 0) throw new GatewayError('invalid_request', 'the prompt has no tokens', { param: 'prompt' })
    const limit = this.#env.maxPromptTokens
    if (prompt.length <= limit) return
    throw new GatewayError('context_length_exceeded', `the prompt has ${prompt.length} tokens, more than ${limit}`, {
      param: 'prompt',
    })
  }

  /** A place that holds at this moment; undefined when the run ended while it waited. */
  async #place(find: () => Placement | Promise<Placement>): Promise<Placement | undefined> {
    for (;;) {
      const found = find()
      const placement = found instanceof Promise ? await found : found
      this.#placed = placement.route
      if (this.#ended) break
      // It may have become known only now how the engine ended.
      if (this.#standing.refused) throw poisoned()
      const turn = this.#env.gate.enter(this.#standing, placement.session)
      if (turn) await this.#untilDeadline(turn)
      if (this.#ended) break
      if (placement.session.open) return placement
      this.#giveBack()
      this.#env.gate.retreat(this.#standing)
    }
    this.#giveBack()
    return undefined
  }

  #giveBack(): void {
    if (this.#placed) this.#env.unsent(this.#placed)
    this.#placed = undefined
  }

  /** What happens to the request is told of the place where it was lost; another choice may have gone on elsewhere since. */
  #tellOf(route: Route): void {
    const { route: other } = this.record
    // How the request ends will not be told of that one: where it is a probe, another request may be it.
    if (other && other !== route) this.#env.unsent(other)
    this.record.route = route
  }

  /** From now on what happens to the request is told of the place. */
  #goTo(route: Route): void {
    this.record.route = route
    this.#placed = undefined
  }

  async #untilDeadline(turn: Promise<void>): Promise<void> {
    const left = this.#remainingMs()
    const timer = left > 0 ? setTimeout(() => this.onFailed(pastDeadline()), left) : undefined
    await turn
    clearTimeout(timer)
  }

  #begin(prompt: number[], text: TextModel, placement: Placement): void {
    const request = this.#request
    const { route, contextLimit } = placement
    const maxTokens = answerBudget(prompt.length, request.maxTokens, contextLimit, route.variant)
    const echo = request.echo ? echoOf(request, prompt, text) : undefined
    this.#goTo(route)
    this.record.submittedAt = this.#env.now()
    this.#env.observer.onSubmit(this.record)
    const flight = new Flight({ request, prompt, text, seed: request.sampling.seed ?? drawSeed(), maxTokens })
    this.#flight = flight
    const choices = Array.from({ length: request.n }, (_, index) => this.#newChoice(index, text, echo))
    for (const choice of choices) this.#choices.add(choice)
    if (maxTokens > 0 || (echo && request.topLogprobs !== undefined)) this.#submit(flight, choices, placement)
    else for (const choice of choices) answerEmpty(choice)
  }

  #newChoice(index: number, text: TextModel, echo: Echo | undefined): Choice {
    const { stop, sampling, topLogprobs } = this.#request
    const output = text.newOutput({ stop, minTokens: sampling.minTokens, skipSpecial: true })
    return new Choice(index, this, text, output, { echo, logprobs: topLogprobs !== undefined })
  }

  #submit(flight: Flight, choices: readonly Choice[], placement: Placement): void {
    const deadlineMs = this.#remainingMs()
    for (const choice of choices) if (!this.#ended) flight.submit(choice, placement, deadlineMs, this.#paused)
    if (this.#paused) this.#env.gate.excuse(this.#standing)
  }

  /** The session ended with sequences of this run. */
  #blame(session: SequenceSession): void {
    if (this.#standing.clear) for (const choice of this.#choices) choice.mark = choice.generated.length
    this.#env.gate.lost(this.#standing, session)
  }

  /** Goes on where the run was lost, or fails it. */
  async #recover(loss: Loss): Promise<void> {
    try {
      // The session first tells all others that it has ended.
      await Promise.resolve()
      if (this.#ended) return
      const cause = loss.cause === 'rung_failed' ? await this.#settleRung(loss) : loss.cause
      if (this.#ended) return
      const { route } = loss.at
      this.#tellOf(route)
      this.#env.observer.onLost(this.record, cause)
      // While it waits for a place no engine works on it, so nobody has to wait for its trial.
      if (this.#losses.size === this.#choices.size) this.#env.gate.retreat(this.#standing)
      if (this.#standing.refused) throw poisoned()
      const { usage } = this.record
      const { failed } = this.#losses
      const placement = await this.#place(() => {
        const request = { ...this.#request, promptTokens: usage.promptTokens, deadlineMs: this.#remainingMs() }
        return this.#env.nextPlacement({ request, route, failed, cause: 'failure' }, this.#signal)
      })
      if (placement) this.#resubmit(placement, cause)
    } catch (error) {
      this.onFailed(toGatewayError(error))
    }
  }

  /** A step can fail alone or because the device, and with it the engine, is lost: the cause it turns out to be. */
  async #settleRung({ at: { session, route }, error }: Loss): Promise<DegradeCause> {
    const stopping = error.code === 'shutting_down'
    await this.#env.engineSettled(session, stopping, this.#signal)
    // The gate is done with it.
    if (this.#ended) return 'rung_failed'
    if (!session.open) {
      // Nobody is to blame for an engine that was asked to stop.
      if (!stopping) this.#blame(session)
      return 'engine_failed'
    }
    this.#losses.countRung(route, this.record.usage.completionTokens)
    return 'rung_failed'
  }

  #resubmit(placement: Placement, cause: DegradeCause): void {
    const flight = this.#flight
    if (flight === undefined) return
    if (this.#standing.refused) throw poisoned()
    const choices = this.#losses.take()
    const replayed = choices.reduce((sum, { generated }) => sum + generated.length, 0)
    const { record } = this
    const { variant, reason } = placement.route
    this.#goTo(placement.route)
    record.failovers++
    this.#env.observer.onFailover(record, cause, replayed)
    const index = choices[0]?.index ?? 0
    // Before the first event there is nothing to go on with: `started` will say what serves it.
    if (this.#started) this.#emit({ type: 'degraded', index, variant, reason, cause, replayedTokens: replayed })
    this.#submit(flight, choices, placement)
  }

  #progressed(): void {
    let clear = true
    for (const { generated, mark } of this.#choices) clear &&= generated.length - mark >= CLEAR_TOKENS
    this.#env.gate.progressed(this.#standing, clear)
  }

  /** Milliseconds left of the deadline, at least 1; 0 = it has none. */
  #remainingMs(): number {
    const { deadlineMs } = this.#request
    if (deadlineMs === 0) return 0
    const left = deadlineMs - (this.#env.now() - this.record.arrivedAt)
    if (left < 1) throw pastDeadline()
    return Math.floor(left)
  }

  readonly #signal = (): AbortSignal => {
    this.#abort ??= new AbortController()
    return this.#abort.signal
  }

  #setPaused(paused: boolean): void {
    if (this.#ended || this.#paused === paused) return
    this.#paused = paused
    this.#flight?.setPaused(paused)
    // What the engine does not work on cannot be on trial.
    if (paused && this.#losses.size === 0) this.#env.gate.excuse(this.#standing)
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
    this.#flight?.cancelAll()
    this.#env.gate.end(this.#standing)
    this.#giveBack()
    this.record.endedAt = this.#env.now()
    this.#env.observer.onEnd(this.record, error)
  }
}

function pastDeadline(): GatewayError {
  return new GatewayError('deadline_exceeded', 'the deadline passed before the request could run')
}

function poisoned(): GatewayError {
  return new GatewayError('poison_request', 'the engine died again when it worked on this request alone')
}
