import type { GatewayError } from '../errors.js'
import type { DegradeCause } from '../request.js'
import type { RungPlace } from '../router/facts.js'
import { placeKey } from '../router/places.js'
import type { Choice } from './choice.js'
import type { Sequence } from './flight.js'

/**
 * Failures in a row, without the request getting on, after which it leaves the rung at the engine where the first of them
 * was: that one may have been chance. It leaves every other place at once, so that each is tried.
 */
const FIRST_PLACE_FAILURES = 2
/** Failures of a rung at all engines together after which the request leaves it: another one is to be tried, too. */
const RUNG_FAILURES = 3

/** How a sequence was lost, and where. */
export interface Loss {
  at: Sequence
  cause: DegradeCause
  error: GatewayError
}

/** What one request has lost and not submitted again, and what it lost before. */
export class Losses {
  readonly #choices: Choice[] = []
  readonly #failures: RungPlace[] = []
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

  /** Counts a failure of a rung at so many `tokens` of the answer. */
  countRung(at: RungPlace, tokens: number): void {
    if (tokens > this.#tokens) this.#failures.length = 0
    this.#tokens = tokens
    this.#failures.push(at)
  }

  /** What the request should leave, as `Lost.failed` has it. */
  get failed(): ReadonlySet<string> {
    const places = this.#failures.map(placeKey)
    return new Set([
      ...places.filter((place) => place !== places[0]),
      ...repeated(places, FIRST_PLACE_FAILURES),
      ...repeated(
        this.#failures.map(({ variant }) => variant),
        RUNG_FAILURES,
      ),
    ])
  }
}

/** Those that are among the names so many times. */
function repeated(names: readonly string[], times: number): string[] {
  return names.filter((name) => names.filter((other) => other === name).length >= times)
}
