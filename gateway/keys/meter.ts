/** How much a key may ask for: requests and tokens per minute. */
import { GatewayError } from '../errors.js'

const MINUTE_MS = 60_000

/** A key's rates; absent = unbounded. */
export interface Rates {
  requestsPerMinute?: number | undefined
  tokensPerMinute?: number | undefined
}

/** A bucket that holds one minute's worth and refills evenly; it may be in debt for what was not known before. */
class Bucket {
  #level: number
  #at: number

  constructor(
    private perMinute: number,
    now: number,
  ) {
    this.#level = perMinute
    this.#at = now
  }

  /** A new rate takes nothing back and gives nothing twice. */
  setRate(perMinute: number, now: number): void {
    this.#refill(now)
    this.#level += perMinute - this.perMinute
    this.perMinute = perMinute
  }

  /** Milliseconds until `amount` is there; 0 = now. What is more than a minute's worth waits for a full bucket. */
  waitMs(amount: number, now: number): number {
    this.#refill(now)
    const missing = Math.min(amount, this.perMinute) - this.#level
    return missing <= 0 ? 0 : Math.ceil((missing / this.perMinute) * MINUTE_MS)
  }

  /** A negative amount gives back. */
  take(amount: number, now: number): void {
    this.#refill(now)
    this.#level = Math.min(this.perMinute, this.#level - amount)
  }

  #refill(now: number): void {
    this.#level = Math.min(this.perMinute, this.#level + ((now - this.#at) / MINUTE_MS) * this.perMinute)
    this.#at = now
  }
}

/** The consumption of one key. Survives a reload of the key file, so that an edit gives nobody a fresh minute. */
export class Meter {
  #requests: Bucket | undefined
  #tokens: Bucket | undefined

  /** `now`: milliseconds, monotonic. */
  constructor(
    rates: Rates,
    private readonly now: () => number,
  ) {
    this.setRates(rates)
  }

  setRates({ requestsPerMinute, tokensPerMinute }: Rates): void {
    this.#requests = this.#adjusted(this.#requests, requestsPerMinute)
    this.#tokens = this.#adjusted(this.#tokens, tokensPerMinute)
  }

  /** Nothing is counted. */
  get unbounded(): boolean {
    return this.#requests === undefined && this.#tokens === undefined
  }

  /** Takes one request of about `tokens` prompt tokens, or takes nothing and throws rate_limit_exceeded. */
  admit(tokens: number): void {
    const now = this.now()
    const requestWait = this.#requests?.waitMs(1, now) ?? 0
    const tokenWait = this.#tokens?.waitMs(tokens, now) ?? 0
    if (requestWait > 0 || tokenWait > 0) {
      const what = requestWait >= tokenWait ? 'requests' : 'tokens'
      throw new GatewayError('rate_limit_exceeded', `this key has used its ${what} per minute`, {
        retryAfterMs: Math.max(requestWait, tokenWait),
      })
    }
    this.#requests?.take(1, now)
    this.#tokens?.take(tokens, now)
  }

  /** Counts tokens that were not known at `admit`; a negative count gives back. */
  charge(tokens: number): void {
    if (tokens !== 0) this.#tokens?.take(tokens, this.now())
  }

  /** Gives a request back that did no work. */
  refund(tokens: number): void {
    this.#requests?.take(-1, this.now())
    this.charge(-tokens)
  }

  #adjusted(bucket: Bucket | undefined, perMinute: number | undefined): Bucket | undefined {
    if (perMinute === undefined) return undefined
    if (bucket === undefined) return new Bucket(perMinute, this.now())
    bucket.setRate(perMinute, this.now())
    return bucket
  }
}
