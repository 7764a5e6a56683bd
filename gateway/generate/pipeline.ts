import { GatewayError } from '../errors.js'
import type { EngineSupervisor } from '../engine-client/supervisor.js'
import type { Models } from '../models.js'
import type { GenerateHandle, GenerateRequest, GenerateSink, Generator } from '../request.js'
import { chooseRung } from '../router/route.js'
import type { TextModel } from '../text/types.js'
import {
  Run,
  type Placement,
  type RunEnvironment,
  type RunObserver,
  type RunRecord,
  type SequenceSession,
} from './run.js'

/** Bounds of the pipeline. */
export interface PipelineLimits {
  maxPromptTokens: number
  /** How long a request waits for an engine or a rung that is coming, milliseconds. */
  engineWaitMs: number
  /** Requests that may wait for them at a time. */
  maxEngineWaiting: number
}

/** The part of the supervisor that requests need. */
export type EngineAccess = Pick<EngineSupervisor, 'waitFor' | 'waiting'> & {
  readonly session: SequenceSession | undefined
}

/** The part of the directory that requests need. */
export type ModelAccess = Pick<Models, 'target' | 'textOf' | 'contextLimit'>

/** Text, routing and engine behind every protocol. Knows every request in flight until its last event. */
export class Pipeline implements Generator, RunEnvironment {
  readonly maxPromptTokens: number
  readonly observer: RunObserver
  readonly #models: ModelAccess
  readonly #engine: EngineAccess
  readonly #limits: PipelineLimits
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
      onFirstToken: (record) => observer.onFirstToken(record),
      onTokens: (record, count, gapMs) => observer.onTokens(record, count, gapMs),
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
    return this.#models.textOf(name) ?? this.#await(() => this.#models.textOf(name), 0, signal)
  }

  placement(name: string, timeoutMs: number, signal: () => AbortSignal): Placement | Promise<Placement> {
    return this.#place(name) ?? this.#await(() => this.#place(name), timeoutMs, signal)
  }

  /** A place for the request now; undefined when one is on its way. Throws when there will be none. */
  #place(name: string): Placement | undefined {
    const target = this.#models.target(name)
    const result = chooseRung(target)
    if (result.kind === 'failed') throw new GatewayError('engine_unavailable', result.why, { retryAfterMs: 10_000 })
    const { session } = this.#engine
    if (result.kind === 'wait' || session === undefined) return undefined
    const { route } = result
    return { session, route, contextLimit: this.#models.contextLimit(route.variant) }
  }

  async #await<T>(probe: () => T | undefined, timeoutMs: number, signal: () => AbortSignal): Promise<T> {
    if (this.#engine.waiting >= this.#limits.maxEngineWaiting) {
      throw new GatewayError('queue_full', 'too many requests wait for the engine', { retryAfterMs: 2000 })
    }
    const bound = this.#limits.engineWaitMs
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
    return this.#engine.session === undefined
      ? new GatewayError('engine_unavailable', 'the engine is being started', retry)
      : new GatewayError('loading', 'the model is being loaded', retry)
  }

  #forget(record: RunRecord): void {
    this.#runs.delete(record)
    if (this.#runs.size === 0) this.#draining?.()
  }
}
