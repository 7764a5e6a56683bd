/** How many requests of a key may be in flight, and wait, at a time. */
import { GatewayError } from '../errors.js'

/** A key's bounds; absent = unbounded. */
export interface Bounds {
  /** Requests from arrival to their last event. */
  maxConcurrent?: number | undefined
  /** Of these, those that no rung has begun to answer. */
  maxWaiting?: number | undefined
}

/** One request's place. Both methods may be called again. */
export interface Ticket {
  /** A rung has begun to answer it. */
  started(): void
  ended(): void
}

const LEAST_RETRY_MS = 100
const MOST_RETRY_MS = 60_000
const UNKNOWN_RETRY_MS = 1000
/** Share of the newest interval in the running mean. */
const NEWEST = 0.2

/** The mean time between places that come free; what passes while none is taken says nothing. */
class Turnover {
  private meanMs: number | undefined
  private at = 0

  constructor(private readonly now: () => number) {}

  /** The first place was taken. */
  begin(): void {
    this.at = this.now()
  }

  freed(): void {
    const interval = this.now() - this.at
    this.at += interval
    this.meanMs = this.meanMs === undefined ? interval : this.meanMs + NEWEST * (interval - this.meanMs)
  }

  /** Milliseconds until another place is likely to come free. */
  retryAfterMs(): number {
    return Math.round(Math.min(MOST_RETRY_MS, Math.max(LEAST_RETRY_MS, this.meanMs ?? UNKNOWN_RETRY_MS)))
  }
}

/** The requests of one key. Survives a reload of the key file. */
export class Quota {
  #inFlight = 0
  #waiting = 0
  readonly #ends: Turnover
  readonly #starts: Turnover

  /** `now`: milliseconds, monotonic. */
  constructor(
    private bounds: Bounds,
    now: () => number,
  ) {
    this.#ends = new Turnover(now)
    this.#starts = new Turnover(now)
  }

  /** Those in flight beyond new bounds go on. */
  setBounds(bounds: Bounds): void {
    this.bounds = bounds
  }

  /** Takes a place, or throws rate_limit_exceeded or queue_full with when one is likely to be free. */
  enter(): Ticket {
    const { maxConcurrent = Infinity, maxWaiting = Infinity } = this.bounds
    if (this.#inFlight >= maxConcurrent) {
      throw new GatewayError('rate_limit_exceeded', `this key has ${this.#inFlight} requests in flight already`, {
        retryAfterMs: this.#ends.retryAfterMs(),
      })
    }
    if (this.#waiting >= maxWaiting) {
      throw new GatewayError('queue_full', `${this.#waiting} requests of this key are waiting already`, {
        retryAfterMs: this.#starts.retryAfterMs(),
      })
    }
    if (this.#inFlight++ === 0) this.#ends.begin()
    if (this.#waiting++ === 0) this.#starts.begin()
    return this.#ticket()
  }

  #ticket(): Ticket {
    let waits = true
    let over = false
    const started = (): void => {
      if (!waits) return
      waits = false
      this.#waiting--
      this.#starts.freed()
    }
    const ended = (): void => {
      if (over) return
      over = true
      started()
      this.#inFlight--
      this.#ends.freed()
    }
    return { started, ended }
  }
}
