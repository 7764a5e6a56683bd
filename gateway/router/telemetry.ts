import type { Logger } from 'pino'
import { Counter, Gauge, type Registry } from 'prom-client'
import { PairCounter } from '../pair-counter.js'
import type { ModelFacts, MoveCause, Route } from './facts.js'
import type { MoveRecord, WatchListener } from './watch.js'

const BREAKER_LEVELS = { closed: 0, half_open: 1, open: 2 } as const

/** Metrics and log lines of routes, moves and breakers. Labels only ever hold configured names. */
export class RouteTelemetry implements WatchListener {
  readonly #log: Logger
  readonly #routes: PairCounter
  readonly #moves: Counter
  readonly #trips: Counter

  constructor(registry: Registry, log: Logger) {
    this.#log = log
    this.#routes = new PairCounter(
      registry,
      'edgeshift_routes_total',
      'Requests by the rung that they were sent to and why.',
      ['variant', 'reason'],
    )
    this.#moves = new Counter({
      name: 'edgeshift_moves_total',
      help: 'Moves of a model on its ladder by what caused them.',
      labelNames: ['model', 'from', 'to', 'cause'],
      registers: [registry],
    })
    this.#trips = new Counter({
      name: 'edgeshift_breaker_trips_total',
      help: 'Times that the breaker of a rung on a device opened, by what it failed of.',
      labelNames: ['variant', 'device', 'cause'],
      registers: [registry],
    })
  }

  /** A request goes to a rung. */
  onRoute({ variant, code }: Route): void {
    this.#routes.inc(variant, code)
  }

  onMove(move: MoveRecord): void {
    const { model, from, to, cause, why, alarm } = move
    this.#moves.inc({ model, from, to, cause })
    this.#log.warn({ model, from, to, cause, why }, 'model moved')
    if (alarm) this.#log.error({ model, variant: to }, 'model moves to and fro; it stays down')
  }

  onBreaker(variant: string, device: string, state: 'open' | 'closed', cause: MoveCause): void {
    if (state === 'open') this.#trips.inc({ variant, device, cause })
    this.#log.warn({ variant, device, state, cause }, 'breaker')
  }

  /** Exports breakers and alarms as they are at a scrape. */
  watch(registry: Registry, models: () => readonly ModelFacts[]): void {
    const breakers = new Gauge({
      name: 'edgeshift_breaker_state',
      help: 'Breaker of a rung: 0 closed, 1 half open, 2 open.',
      labelNames: ['variant', 'device'],
      registers: [registry],
      collect: () => {
        breakers.reset()
        for (const { variants } of models()) {
          for (const rung of variants) {
            for (const { name: variant, device, breaker } of [rung, ...rung.elsewhere]) {
              breakers.set({ variant, device }, BREAKER_LEVELS[breaker.state])
            }
          }
        }
      },
    })
    const flapping = new Gauge({
      name: 'edgeshift_ladder_flapping',
      help: '1 while a model stays down because it kept falling from the rung that it had come back to.',
      labelNames: ['model'],
      registers: [registry],
      collect: () => {
        for (const model of models()) flapping.set({ model: model.id }, model.flapping ? 1 : 0)
      },
    })
  }
}
