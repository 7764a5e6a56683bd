import type { GatewayError } from '../errors.js'
import type { DegradeCause } from '../request.js'
import type { Choice } from './choice.js'
import type { Sequence } from './flight.js'

/** Failures of a rung in a row, without the request getting on, after which the request leaves it. */
const RUNG_FAILURES = 2
/** Failures of rungs in a row, without the request getting on, after which the request fails. */
const ALL_FAILURES = 4

/** How a sequence was lost, and where. */
export interface Loss {
  at: Sequence
  cause: DegradeCause
  error: GatewayError
}

/** What one request has lost and not submitted again, and what it lost before. */
export class Losses {
  readonly #choices: Choice[] = []
  readonly #failures = new Map<string, number>()
  #tokens = 0

  /** Choices that wait to be submitted again. */
  get size(): number {
    return this.#choices.length
  }

  /** Adds a choice; true when it is the first one, so that somebody has to deal with its loss. */
  add(choice: Choice): boolean {
    return this.#choices.push(choice) === 1
  }

  /** The lost choices, which are not lost any more. */
  take(): Choice[] {
    return this.#choices.splice(0)
  }

  /** Counts a failure of a rung at so many `tokens` of the answer. False when the request should give up. */
  countRung(variant: string, tokens: number): boolean {
    if (tokens > this.#tokens) this.#failures.clear()
    this.#tokens = tokens
    this.#failures.set(variant, (this.#failures.get(variant) ?? 0) + 1)
    return [...this.#failures.values()].reduce((sum, count) => sum + count, 0) < ALL_FAILURES
  }

  /** Rungs that the request should leave. */
  get failedRungs(): ReadonlySet<string> {
    return new Set([...this.#failures].flatMap(([variant, count]) => (count >= RUNG_FAILURES ? [variant] : [])))
  }
}
