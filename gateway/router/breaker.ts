import type { BreakerView, MoveCause } from './facts.js'

/** When a breaker opens and when it lets a request through again. */
export interface BreakerPolicy {
  /** Failures in a row that open it. */
  maxFailures: number
  /** Milliseconds from the last failure until a probe is let through. */
  recoverAfterMs: number
}

/** Failures of one rung on one device. Times are milliseconds of one monotonic clock. */
export interface Breaker {
  /** In a row. */
  failures: number
  lastFailureAt: number
  cause: MoveCause
  /** It opened and no probe has succeeded since. */
  tripped: boolean
  /** A probe is on its way since then; undefined = none. */
  probingSince: number | undefined
}

/** A breaker that has seen no failure. */
export const INTACT: Breaker = {
  failures: 0,
  lastFailureAt: -Infinity,
  cause: 'failure',
  tripped: false,
  probingSince: undefined,
}

/** After one more failure. A failure while it is open, or of its probe, begins the wait anew. */
export function afterFailure(breaker: Breaker, cause: MoveCause, policy: BreakerPolicy, now: number): Breaker {
  const failures = breaker.failures + 1
  const tripped = breaker.tripped || failures >= policy.maxFailures
  return { failures, lastFailureAt: now, cause, tripped, probingSince: undefined }
}

/** After a success: failures in a row begin anew. An open breaker is closed only by its probe. */
export function afterSuccess(breaker: Breaker, wasProbe: boolean): Breaker {
  if (breaker.tripped && !wasProbe) return breaker
  // The time of the last failure stays: it is from then on that the rung is healthy.
  return { ...breaker, failures: 0, tripped: false, probingSince: undefined }
}

/** After a request was sent as its probe. */
export function afterProbe(breaker: Breaker, now: number): Breaker {
  return { ...breaker, probingSince: now }
}

/** After a probe ended without a verdict: its client went away. */
export function afterAbandonedProbe(breaker: Breaker): Breaker {
  return { ...breaker, probingSince: undefined }
}

/** What a decision sees at `now`. A probe that tells nothing for the recovery time again does not block the next. */
export function viewOf(breaker: Breaker, policy: BreakerPolicy, now: number): BreakerView {
  if (!breaker.tripped) return { state: 'closed' }
  const { failures, cause, lastFailureAt, probingSince } = breaker
  const since = Math.max(lastFailureAt, probingSince ?? -Infinity)
  const retryAfterMs = since + policy.recoverAfterMs - now
  if (retryAfterMs <= 0) return { state: 'half_open' }
  const why = probingSince === undefined ? `failed ${failures} times in a row (${cause})` : 'is being tried again'
  return { state: 'open', cause, retryAfterMs, why }
}
