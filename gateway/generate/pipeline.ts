import { GatewayError } from '../errors.js'
import type { EngineFleet } from '../engine-client/fleet.js'
import type { Models } from '../models.js'
import type { GenerateHandle, GenerateRequest, GenerateSink, Generator } from '../request.js'
import type { Lost, Route, RouteResult } from '../router/facts.js'
import type { TextModel } from '../text/types.js'
import type { Placement, SequenceSession } from './flight.js'
import type { RunObserver, RunRecord } from './observer.js'
import { Run, type RunEnvironment } from './run.js'
import { TrialGate } from './trial.js'

/** Bounds of the pipeline. */
export interface PipelineLimits {
  maxPromptTokens: number
  /** How long a request waits for an engine or a rung that is coming, milliseconds. */
  engineWaitMs: number
  /** The same for a request that was accepted and lost when they failed. */
  failoverWaitMs: number
  /** Requests that may wait for them at a time; those that were accepted do not count as too many. */
  maxEngineWaiting: number
}

/** The part of the engines that requests need. */
export type EngineAccess = Pick<EngineFleet, 'waitFor' | 'waiting' | 'confirm' | 'up'> & {
  sessionAt(engine: number): SequenceSession | undefined
}

/** The part of the directory that requests need. */
export type ModelAccess = Pick<Models, 'route' | 'nextRoute' | 'unsent' | 'textOf' | 'contextLimit'>

/** Text, routing and engine behind every protocol. Knows every request in flight until its last event. */
export class Pipeline implements Generator, RunEnvironment {
  readonly maxPromptTokens: number
  readonly observer: RunObserver
  readonly gate = new TrialGate()
  readonly #models: ModelAccess
  readonly #engine: EngineAccess
  #limits: PipelineLimits
  readonly #runs = new Map<RunRecord, Run>()
  #draining: (() => void) | undefined

  constructor(models: ModelAccess, engine: EngineAccess, limits: PipelineLimits, observer: RunObserver) {
    this.#models = models
    this.#engine = engine
    this.#limits = limits
    this.maxPromptTokens = limits.maxPromptTokens
    this.observer = {
      onArrival: (record) => observer.onArrival(record),
      onSubmit: (record) => observer.onSubmit(record),
      onFirstToken: (record, at) => observer.onFirstToken(record, at),
      onTokens: (record, at, count, gapMs) => observer.onTokens(record, at, count, gapMs),
      onLost: (record, cause) => observer.onLost(record, cause),
      onFailover: (record, cause, replayed) => observer.onFailover(record, cause, replayed),
      onEnd: (record, error) => {
        observer.onEnd(record, error)
        this.#forget(record)
      },
    }
  }

  generate(request: GenerateRequest, sink: GenerateSink): GenerateHandle {
    const run = new Run(this, request, sink)
    this.#runs.set(run.record, run)
    void run.start()
    return run
  }

  /** For waits that begin from now on. */
  setWaits(engineWaitMs: number, failoverWaitMs: number): void {
    this.#limits = { ...this.#limits, engineWaitMs, failoverWaitMs }
  }

  /** Requests in flight. */
  get active(): number {
    return this.#runs.size
  }

  get draining(): boolean {
    return this.#draining !== undefined
  }

  /**
   * Refuses new requests from now on; resolves when those in flight have ended, after `limitMs` by failing them.
   */
  async drain(limitMs: number): Promise<void> {
    const drained = new Promise<void>((resolve) => {
      this.#draining = resolve
    })
    if (this.#runs.size === 0) return
    const timer = setTimeout(() => {
      const error = new GatewayError('shutting_down', 'the server is shutting down')
      for (const run of this.#runs.values()) run.onFailed(error)
    }, limitMs)
    await drained
    clearTimeout(timer)
  }

  now(): number {
    return performance.now()
  }

  textModel(name: string, signal: () => AbortSignal): TextModel | Promise<TextModel> {
    if (this.#draining) throw new GatewayError('shutting_down', 'the server is shutting down')
    return this.#models.textOf(name) ?? this.#awaitAsNew(() => this.#models.textOf(name), 0, signal)
  }

  placement(
    request: GenerateRequest,
    promptTokens: number,
    deadlineMs: number,
    signal: () => AbortSignal,
  ): Placement | Promise<Placement> {
    this.#checkRoom(this.gate.waiting)
    const asked = { ...request, promptTokens, deadlineMs }
    const find = (): Placement | undefined => this.#place(this.#models.route(asked))
    return find() ?? this.#awaitAsNew(find, deadlineMs, signal)
  }

  nextPlacement(lost: Lost, signal: () => AbortSignal): Placement | Promise<Placement> {
    const find = (): Placement | undefined => this.#place(this.#models.nextRoute(lost))
    return find() ?? this.#await(find, lost.request.deadlineMs, this.#limits.failoverWaitMs, signal)
  }

  unsent(route: Route): void {
    this.#models.unsent(route)
  }

  async engineSettled(session: SequenceSession, stopping: boolean, signal: () => AbortSignal): Promise<void> {
    if (!stopping) return this.#engine.confirm(session, signal())
    await this.#engine.waitFor(() => (session.open ? undefined : true), this.#limits.failoverWaitMs, signal())
  }

  /** A place for the request now; undefined when one is on its way. Throws when there will be none. */
  #place(result: RouteResult): Placement | undefined {
    if (result.kind === 'refuse') throw new GatewayError(result.refusal.code, result.refusal.message, result.refusal)
    if (result.kind === 'wait') return undefined
    const { route } = result
    const session = this.#engine.sessionAt(route.engine)
    if (!session?.open) {
      this.unsent(route)
      return undefined
    }
    return { session, route, contextLimit: this.#models.contextLimit(route.variant) }
  }

  #awaitAsNew<T>(probe: () => T | undefined, timeoutMs: number, signal: () => AbortSignal): Promise<T> {
    this.#checkRoom(this.#engine.waiting)
    return this.#await(probe, timeoutMs, this.#limits.engineWaitMs, signal)
  }

  #checkRoom(waiting: number): void {
    if (waiting < this.#limits.maxEngineWaiting) return
    throw new GatewayError('queue_full', 'too many requests wait for the engine', { retryAfterMs: 2000 })
  }

  /** Waits up to `timeoutMs` (0 = none) and `bound`. */
  async #await<T>(probe: () => T | undefined, timeoutMs: number, bound: number, signal: () => AbortSignal): Promise<T> {
    // A probe that throws ends the wait with what it threw.
    const attempt = (): { value: T } | { error: unknown } | undefined => {
      try {
        const value = probe()
        return value === undefined ? undefined : { value }
      } catch (error) {
        return { error }
      }
    }
    const outcome = await this.#engine.waitFor(attempt, timeoutMs > 0 ? Math.min(timeoutMs, bound) : bound, signal())
    if (outcome === undefined) throw this.#notReady(timeoutMs > 0 && timeoutMs < bound)
    if ('error' in outcome) throw outcome.error
    return outcome.value
  }

  #notReady(pastDeadline: boolean): GatewayError {
    if (pastDeadline) return new GatewayError('deadline_exceeded', 'the deadline passed before the engine was ready')
    const retry = { retryAfterMs: 2000 }
    return this.#engine.up
      ? new GatewayError('loading', 'the model is being loaded', retry)
      : new GatewayError('engine_unavailable', 'the engine is being started', retry)
  }

  #forget(record: RunRecord): void {
    this.#runs.delete(record)
    if (this.#runs.size === 0) this.#draining?.()
  }
}
