import type { RunObserver, RunRecord } from '../generate/observer.js'
import type { GatewayError } from '../errors.js'
import type { DegradeCause } from '../request.js'
import type { Route, RungPlace } from './facts.js'
import type { RungMeter } from './meter.js'
import type { RouteTelemetry } from './telemetry.js'
import type { RungWatch } from './watch.js'

/** Without a token for that long a rung is too slow; deadlines below it are the client's affair. */
const SLOW_MS = 5000

/** What is known of the rungs at one engine, by variant. */
interface EngineLife {
  /** Those that gave a token since its start: when it dies, that is not held against them. */
  readonly proven: Set<string>
  /** Those that its death was held against: it is one failure, however long it takes to tell all requests. */
  readonly blamed: Set<string>
  /** Which request was last lost there before any token. Outlives the engine's process. */
  readonly lost: Map<string, RunRecord>
}

/** Turns what requests saw into what the router knows: measured figures, successes and failures. Tells `next`, too. */
export class RouteFeedback implements RunObserver {
  readonly #engines = new Map<number, EngineLife>()

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

  onFirstToken(record: RunRecord, at: Route | undefined): void {
    const { firstTokenAt, submittedAt, queueUs, usage } = record
    if (at) {
      const ms = firstTokenAt - submittedAt - queueUs / 1000
      this.watch.succeeded(at, at.probe)
      this.meter.prefill(at.variant, usage.promptTokens - usage.cachedTokens, ms)
    }
    this.next.onFirstToken(record, at)
  }

  onTokens(record: RunRecord, at: Route | undefined, count: number, gapMs: number): void {
    if (at && gapMs > 0) this.meter.tokens(at.variant, count, gapMs)
    if (at && !this.#life(at).proven.has(at.variant)) this.#prove(at)
    this.next.onTokens(record, at, count, gapMs)
  }

  onLost(record: RunRecord, cause: DegradeCause): void {
    const { route } = record
    if (route && (cause === 'rung_failed' || this.#isAgainst(route, record))) this.watch.failed(route, 'failure')
    else if (route?.probe) this.watch.abandoned(route)
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

  /** An engine's process ended; `engine` is its place among those of the box. */
  onEngineEnd(engine: number): void {
    const life = this.#engines.get(engine)
    life?.proven.clear()
    life?.blamed.clear()
  }

  /** A replay gives no first token, so any token counts. */
  #prove(route: Route): void {
    this.#life(route).proven.add(route.variant)
    this.watch.succeeded(route, route.probe)
  }

  /** An engine that dies again under the same request and no other says more of the request than of the rung. */
  #isAgainst(at: RungPlace, record: RunRecord): boolean {
    const { proven, blamed, lost } = this.#life(at)
    if (proven.has(at.variant)) return false
    const before = lost.get(at.variant)
    lost.set(at.variant, record)
    if (blamed.has(at.variant)) return false
    blamed.add(at.variant)
    return before !== record
  }

  #life({ engine }: RungPlace): EngineLife {
    const known = this.#engines.get(engine)
    if (known) return known
    const life = { proven: new Set<string>(), blamed: new Set<string>(), lost: new Map<string, RunRecord>() }
    this.#engines.set(engine, life)
    return life
  }

  #judge({ route, submittedAt, endedAt, firstTokenAt }: RunRecord, error: GatewayError | undefined): void {
    if (!route || submittedAt < 0) return
    if (error === undefined && firstTokenAt >= 0) {
      this.watch.succeeded(route, route.probe)
      this.meter.served(route.variant, endedAt - submittedAt)
    } else if (error?.code === 'deadline_exceeded' && firstTokenAt < 0 && endedAt - submittedAt >= SLOW_MS) {
      this.watch.failed(route, 'deadline')
    } else if (route.probe) {
      // It ended without a verdict on the rung, or that was told when it was lost.
      this.watch.abandoned(route)
    }
  }
}
