import type { Logger } from 'pino'
import type { GatewayError } from '../errors.js'
import type { Metrics, VariantMetrics } from '../metrics.js'
import type { DegradeCause, GenerateInput } from '../request.js'
import type { RunObserver, RunRecord } from './run.js'

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
    const metrics = this.#variant(record)
    if (metrics) metrics.promptTokens += record.usage.promptTokens
  }

  onFirstToken(record: RunRecord): void {
    const metrics = this.#variant(record)
    metrics?.timeToFirstToken.observe((record.firstTokenAt - record.arrivedAt) / 1000)
    metrics?.queueTime.observe(record.queueUs / 1e6)
  }

  onTokens(record: RunRecord, count: number, gapMs: number): void {
    const metrics = this.#variant(record)
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
    this.#variant(record)?.endToEnd.observe((record.endedAt - record.arrivedAt) / 1000)
    this.#logEnd(record, error)
  }

  #variant({ route }: RunRecord): VariantMetrics | undefined {
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
