/** The pipeline with a session, a ladder and an engine that the test plays. */
import { pino } from 'pino'
import type { Submission, SequenceListener } from '../../gateway/engine-client/session.js'
import { GatewayError } from '../../gateway/errors.js'
import { RunTelemetry } from '../../gateway/generate/observer.js'
import { Pipeline, type EngineAccess, type PipelineLimits } from '../../gateway/generate/pipeline.js'
import { Metrics } from '../../gateway/metrics.js'
import type { GenerateEvent, GenerateHandle, GenerateRequest } from '../../gateway/request.js'
import type { ModelFacts, Route } from '../../gateway/router/facts.js'
import type { TextModel } from '../../gateway/text/types.js'
import { FinishReason, type SequenceDelta } from '../../proto/gen/edgeshift/v1/engine.js'
import { fakeText } from './fake-text.js'
import { modelFacts, routesOf, type RungSketch } from './router-facts.js'
import { DEFAULT_SAMPLING } from './sampling.js'

/** Context of every rung, tokens. */
export const CONTEXT = 32

/** A session that keeps what was sent and lets the test answer. */
export class FakeSession {
  open = true
  /** While it tells that it has ended, whoever holds it still does. */
  dying = false
  readonly submitted: Submission[] = []
  readonly log: string[] = []
  readonly listeners = new Map<number, SequenceListener>()

  submit(submission: Submission, listener: SequenceListener): number {
    this.submitted.push(submission)
    this.listeners.set(this.submitted.length, listener)
    return this.submitted.length
  }

  cancel(id: number): void {
    if (this.listeners.delete(id)) this.log.push(`cancel ${id}`)
  }

  setPaused(id: number, paused: boolean): void {
    this.log.push(`${paused ? 'pause' : 'resume'} ${id}`)
  }

  /** The engine dies: every sequence is lost. */
  die(): void {
    this.open = false
    this.dying = true
    const lost = [...this.listeners.values()]
    this.listeners.clear()
    for (const listener of lost) listener.onLost(new GatewayError('engine_failed', 'the engine failed: killed'))
    this.dying = false
  }

  /** Gives sequence `id` one delta: code units, or ids. */
  delta(
    id: number,
    text: string | number[],
    finish = FinishReason.UNSPECIFIED,
    more: Partial<SequenceDelta> = {},
  ): void {
    const tokens = typeof text === 'string' ? Array.from(text, (char) => char.charCodeAt(0)) : text
    const delta = { sequenceId: id, tokens, logprobs: [], promptLogprobs: [], finishReason: finish, ...more }
    const listener = this.listeners.get(id)
    if (finish !== FinishReason.UNSPECIFIED) this.listeners.delete(id)
    listener?.onDelta(delta)
  }
}

/** See above. */
export class Setup {
  session = new FakeSession()
  readonly events: GenerateEvent[] = []
  readonly metrics = new Metrics('test')
  /** One rung, int4. */
  readonly model: ModelFacts = modelFacts('m', ['ready', 'ready', 'ready'], { tags: ['chat'], maxModelLen: CONTEXT })
  readonly pipeline: Pipeline
  /** Waits for the engine that nothing has ended. */
  waiting = 0
  /** When the engine has answered whether it outlived a failed step. */
  confirmed: Promise<void> = Promise.resolve()
  /** Routes that were given and not used. */
  readonly unsent: Route[] = []
  /** Whose session was asked for when a place was found, in order. */
  readonly engines: number[] = []
  private checks: (() => void)[] = []

  constructor(limits: Partial<PipelineLimits> = {}, text: TextModel = fakeText()) {
    this.model.variants = ladder(['int4'])
    const models = {
      ...routesOf(this.model),
      unsent: (route: Route) => void this.unsent.push(route),
      textOf: () => text,
      contextLimit: () => CONTEXT,
    }
    const sessionAt = () => (this.session.open || this.session.dying ? this.session : undefined)
    const engine: EngineAccess = {
      sessionAt: (place) => {
        this.engines.push(place)
        return sessionAt()
      },
      get up() {
        return sessionAt() !== undefined
      },
      waiting: 0,
      confirm: () => this.confirmed,
      waitFor: <T>(probe: () => T | undefined, timeoutMs: number, signal?: AbortSignal) => {
        this.waiting++
        const ended = new Promise<T | undefined>((resolve) => {
          const check = (): void => {
            const value = probe()
            if (value !== undefined) resolve(value)
          }
          this.checks.push(check)
          check()
          signal?.addEventListener('abort', () => resolve(undefined))
          if (timeoutMs === 1) resolve(undefined)
        })
        return ended.finally(() => this.waiting--)
      },
    }
    const bounds = { maxPromptTokens: 1000, engineWaitMs: 5000, failoverWaitMs: 5000, maxEngineWaiting: 4, ...limits }
    const telemetry = new RunTelemetry(this.metrics, pino({ level: 'silent' }), false)
    this.pipeline = new Pipeline(models, engine, bounds, telemetry)
  }

  /** The engine dies; `restart` brings the next one. */
  die(): void {
    this.session.die()
  }

  /** The next engine is there; resolves when what waited for it has gone on. */
  async restart(): Promise<void> {
    this.session = new FakeSession()
    this.changed()
    await settle()
  }

  /** Something about the engine changed. */
  changed(): void {
    for (const check of this.checks) check()
  }

  /** Starts a request; resolves when the pipeline has nothing more to do without news. */
  async start(overrides: Partial<GenerateRequest> = {}, ...maxTokens: (number | undefined)[]): Promise<GenerateHandle> {
    const request = { ...requestOf(), ...overrides }
    if (maxTokens.length > 0 && maxTokens[0] === undefined) delete request.maxTokens
    else if (maxTokens[0] !== undefined) request.maxTokens = maxTokens[0]
    const handle = this.pipeline.generate(request, (event) => this.events.push(event))
    if (this.events.length > 0) throw new Error('events came before the handle')
    await settle()
    return handle
  }

  get error(): GatewayError | undefined {
    const last = this.events.at(-1)
    return last?.type === 'error' ? last.error : undefined
  }
}

/** Some rungs of the setup's model, best first; each is ready unless `sketches` says something else. */
export function ladder(
  precisions: readonly ('fp16' | 'int8' | 'int4')[],
  sketches: Partial<Record<'fp16' | 'int8' | 'int4', RungSketch>> = {},
): ModelFacts['variants'] {
  const { fp16 = 'ready', int8 = 'ready', int4 = 'ready' } = sketches
  const { variants } = modelFacts('m', [fp16, int8, int4])
  return variants
    .filter(({ precision }) => precisions.includes(precision))
    .map((rung) => Object.assign(rung, { maxModelLen: CONTEXT }))
}

/** "ab" with up to four tokens. */
export function requestOf(): GenerateRequest {
  return {
    id: 'r',
    model: 'm',
    input: { kind: 'text', text: 'ab' },
    stop: [],
    maxTokens: 4,
    echo: false,
    n: 1,
    priority: 0,
    deadlineMs: 0,
    tenant: '',
    sampling: { ...DEFAULT_SAMPLING, seed: 7 },
  }
}

/** Lets every microtask that is due run. */
export const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
