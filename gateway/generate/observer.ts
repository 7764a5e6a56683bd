import type { Logger } from 'pino'
import type { GatewayError } from '../errors.js'
import type { Metrics, VariantMetrics } from '../metrics.js'
import type { DegradeCause, GenerateInput, GenerateRequest, Usage } from '../request.js'
import type { Route } from '../router/facts.js'

/** A run's figures, all in milliseconds of `now`; -1 = did not happen. */
export interface RunRecord {
  request: GenerateRequest
  route: Route | undefined
  arrivedAt: number
  submittedAt: number
  firstTokenAt: number
  endedAt: number
  queueUs: number
  /** How often it was lost and went on. */
  failovers: number
  usage: Usage
}

/** Metrics and logs of runs. */
export interface RunObserver {
  onArrival(record: RunRecord): void
  /** The prompt's length and the route are known and its choices go to the engine. */
  onSubmit(record: RunRecord): void
  /** `at`: where the choice is that it is of; another one may have gone elsewhere. */
  onFirstToken(record: RunRecord, at: Route | undefined): void
  /** `count` tokens of one choice came `gapMs` after the ones before; a negative gap: they are its first. */
  onTokens(record: RunRecord, at: Route | undefined, count: number, gapMs: number): void
  /** It was lost where `record.route` says; nothing is decided yet. */
  onLost(record: RunRecord, cause: DegradeCause): void
  /** It was lost and goes on at `record.route`, where the engine reads `replayedTokens` of its output again. */
  onFailover(record: RunRecord, cause: DegradeCause, replayedTokens: number): void
  /** Undefined: the answer is complete. */
  onEnd(record: RunRecord, error: GatewayError | undefined): void
}

/** Milliseconds with three decimals, as log fields carry them. */
function rounded(ms: number): number {
  return Math.round(ms * 1000) / 1000
}

/** The prompt as a log field, only where the operator asked for it. */
function promptField(input: GenerateInput): object {
  return input.kind === 'chat'
    ? { messages: input.messages }
    : { prompt: input.kind === 'text' ? input.text : input.tokens }
}

/** Turns runs into metrics and one log line each. */
export class RunTelemetry implements RunObserver {
  readonly #metrics: Metrics
  readonly #log: Logger
  #logPrompts: boolean

  constructor(metrics: Metrics, log: Logger, logPrompts: boolean) {
    this.#metrics = metrics
    this.#log = log
    this.#logPrompts = logPrompts
  }

  /** Whether prompts stand in the lines of requests that end from now on. */
  setLogPrompts(logPrompts: boolean): void {
    this.#logPrompts = logPrompts
  }

  onArrival(): void {}

  onSubmit(record: RunRecord): void {
    const metrics = this.#variant(record.route)
    if (metrics) metrics.promptTokens += record.usage.promptTokens
  }

  onFirstToken(record: RunRecord, at: Route | undefined): void {
    const metrics = this.#variant(at)
    metrics?.timeToFirstToken.observe((record.firstTokenAt - record.arrivedAt) / 1000)
    metrics?.queueTime.observe(record.queueUs / 1e6)
  }

  onTokens(_: RunRecord, at: Route | undefined, count: number, gapMs: number): void {
    const metrics = this.#variant(at)
    if (!metrics) return
    metrics.generationTokens += count
    if (gapMs >= 0) metrics.interToken.observe(gapMs / 1000 / count, count)
  }

  onLost(): void {}

  onFailover(record: RunRecord, cause: DegradeCause, replayedTokens: number): void {
    this.#metrics.countFailover(cause, replayedTokens)
    const { request, route } = record
    this.#log.debug({ requestId: request.id, cause, variant: route?.variant, replayedTokens }, 'request goes on')
  }

  onEnd(record: RunRecord, error: GatewayError | undefined): void {
    this.#metrics.countRequest(record.route?.model ?? '', error?.code ?? 'ok')
    this.#variant(record.route)?.endToEnd.observe((record.endedAt - record.arrivedAt) / 1000)
    this.#logEnd(record, error)
  }

  #variant(route: Route | undefined): VariantMetrics | undefined {
    return route && this.#metrics.variant(route.model, route.variant)
  }

  #logEnd(record: RunRecord, error: GatewayError | undefined): void {
    const level = error?.httpStatus !== undefined && error.httpStatus >= 500 ? 'error' : 'info'
    if (!this.#log.isLevelEnabled(level)) return
    const { request, route, usage, arrivedAt, submittedAt, firstTokenAt, endedAt } = record
    const fields = {
      requestId: request.id,
      clientRequestId: request.clientRequestId,
      traceparent: request.traceparent,
      model: request.model.slice(0, 200),
      variant: route?.variant,
      reason: route?.reason,
      promptTokens: usage.promptTokens,
      cachedTokens: usage.cachedTokens,
      completionTokens: usage.completionTokens,
      choices: request.n,
      grammar: request.grammar?.kind?.$case,
      prepareMs: submittedAt < 0 ? undefined : rounded(submittedAt - arrivedAt),
      queueMs: rounded(record.queueUs / 1000),
      firstTokenMs: firstTokenAt < 0 ? undefined : rounded(firstTokenAt - arrivedAt),
      ...(record.failovers > 0 && { failovers: record.failovers }),
      durationMs: rounded(endedAt - arrivedAt),
      outcome: error?.code ?? 'ok',
      ...(error && { error: error.message }),
      ...(error?.code === 'internal' && { err: error.cause }),
      ...(this.#logPrompts && promptField(request.input)),
    }
    this.#log[level](fields, 'generation')
  }
}
