import { describe, expect, it } from 'vitest'
import {
  afterAbandonedProbe,
  afterFailure,
  afterProbe,
  afterSuccess,
  type Breaker,
  INTACT,
  viewOf,
} from '../../gateway/router/breaker.js'

const policy = { maxFailures: 3, recoverAfterMs: 1000 }

/** A breaker after failures at these times. */
const failedAt = (...times: number[]): Breaker =>
  times.reduce((breaker, time) => afterFailure(breaker, 'failure', policy, time), INTACT)

const stateOf = (breaker: Breaker, now: number): string => viewOf(breaker, policy, now).state

describe('a breaker', () => {
  it.each<[string, Breaker, number, string]>([
    ['without failures', INTACT, 0, 'closed'],
    ['after fewer failures than it takes', failedAt(0, 1), 2, 'closed'],
    ['after as many', failedAt(0, 1, 2), 2, 'open'],
    ['until the recovery time is over', failedAt(0, 1, 2), 1001, 'open'],
    ['after it', failedAt(0, 1, 2), 1002, 'half_open'],
    ['while a probe is on its way', afterProbe(failedAt(0, 1, 2), 1002), 1500, 'open'],
    ['when the probe tells nothing for as long', afterProbe(failedAt(0, 1, 2), 1002), 2002, 'half_open'],
    ['after a probe without a verdict', afterAbandonedProbe(afterProbe(failedAt(0, 1, 2), 1002)), 1003, 'half_open'],
    ['after a probe that failed', failedAt(0, 1, 2, 1100), 2000, 'open'],
    ['long after it', failedAt(0, 1, 2, 1100), 2100, 'half_open'],
    ['after a probe that succeeded', afterSuccess(failedAt(0, 1, 2), true), 3, 'closed'],
    ['after the success of a request that came before', afterSuccess(failedAt(0, 1, 2), false), 3, 'open'],
    [
      'when a success comes between the failures',
      afterFailure(afterSuccess(failedAt(0, 1), false), 'oom', policy, 2),
      3,
      'closed',
    ],
  ])('%s: %#', (_, breaker, now, state) => {
    expect(stateOf(breaker, now)).toBe(state)
  })

  it('says since when and why', () => {
    const breaker = afterFailure(failedAt(0, 1), 'oom', policy, 2)
    expect(viewOf(breaker, policy, 502)).toEqual({
      state: 'open',
      cause: 'oom',
      retryAfterMs: 500,
      why: 'failed 3 times in a row (oom)',
    })
  })
})
