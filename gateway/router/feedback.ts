import type { RunObserver, RunRecord } from '../generate/run.js'
import type { GatewayError } from '../errors.js'
import type { DegradeCause } from '../request.js'
import type { RungMeter } from './meter.js'
import type { RouteTelemetry } from './telemetry.js'
import type { RungWatch } from './watch.js'

/** Endings that say nothing of the rung: the probe that ends so has to be repeated. */
const NO_VERDICT: ReadonlySet<string> = new Set(['cancelled', 'shutting_down', 'queue_full'])

/** Turns what requests saw into what the router knows: measured figures, successes and failures. Tells `next`, too. */
export class RouteFeedback implements RunObserver {
  /** Rungs that gave a token since the engine's start: when it dies, that is not held against them. */
  readonly #proven = new Set<string>()

  constructor(
    private readonly watch: RungWatch,
    private readonly meter: RungMeter,
    private readonly telemetry: RouteTelemetry,
    private readonly next: RunObserver,
  ) {}

  onArrival(record: RunRecord): void {
    this.next.onArrival(record)
  }

  onSubmit(record: RunRecord): void {
    if (record.route) this.telemetry.onRoute(record.route)
    this.next.onSubmit(record)
  }

  onFirstToken(record: RunRecord): void {
    const { route, firstTokenAt, submittedAt, queueUs, usage } = record
    if (route) {
      const ms = firstTokenAt - submittedAt - queueUs / 1000
      this.#proven.add(route.variant)
      this.watch.succeeded(route.variant, route.probe)
      this.meter.prefill(route.variant, usage.promptTokens - usage.cachedTokens, ms)
    }
    this.next.onFirstToken(record)
  }

  onTokens(record: RunRecord, count: number, gapMs: number): void {
    if (record.route && gapMs > 0) this.meter.tokens(record.route.variant, count, gapMs)
    this.next.onTokens(record, count, gapMs)
  }

  onLost(record: RunRecord, cause: DegradeCause): void {
    const { route } = record
    if (route && (cause === 'rung_failed' || !this.#proven.has(route.variant))) {
      this.watch.failed(route.variant, 'failure')
    }
    this.next.onLost(record, cause)
  }

  onFailover(record: RunRecord, cause: DegradeCause, replayedTokens: number): void {
    if (record.route) this.telemetry.onRoute(record.route)
    this.next.onFailover(record, cause, replayedTokens)
  }

  onEnd(record: RunRecord, error: GatewayError | undefined): void {
    this.#judge(record, error)
    this.next.onEnd(record, error)
  }

  /** The engine's process ended. */
  onEngineEnd(): void {
    this.#proven.clear()
  }

  #judge({ route, submittedAt, endedAt, firstTokenAt }: RunRecord, error: GatewayError | undefined): void {
    if (!route || submittedAt < 0) return
    if (error === undefined) {
      this.watch.succeeded(route.variant, route.probe)
      this.meter.served(route.variant, endedAt - submittedAt)
    } else if (error.code === 'deadline_exceeded' && firstTokenAt < 0) {
      // It was taken because the figures said that it would begin in time.
      this.watch.failed(route.variant, 'deadline')
    } else if (route.probe && NO_VERDICT.has(error.code)) {
      this.watch.abandoned(route.variant)
    }
  }
}
