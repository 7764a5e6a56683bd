import { describe, expect, it } from 'vitest'
import type { Route, RouteRequest } from '../../gateway/router/facts.js'
import { nextRoute } from '../../gateway/router/next-route.js'
import { modelFacts, routeRequest, type RungSketch } from '../support/router-facts.js'

const OPEN = { state: 'open', cause: 'failure', retryAfterMs: 5000, why: 'failed 3 times in a row' } as const

type Rungs = [RungSketch, RungSketch, RungSketch]

const route: Route = {
  model: 'm',
  variant: 'm:int8',
  engine: 0,
  code: 'requested',
  reason: 'requested: as asked for',
  probe: false,
}

/** Where a request that int8 served goes on: "precision code", "wait" or "error code". */
function go(
  rungs: Rungs,
  failed: string[] = [],
  request: Partial<RouteRequest> = {},
  degradeOn = ['failure'] as const,
) {
  const model = modelFacts('m', rungs, { policy: { degrade_on: [...degradeOn] } })
  const result = nextRoute(model, { request: routeRequest(request), route, failed: new Set(failed), cause: 'failure' })
  if (result.kind === 'wait') return 'wait'
  return result.kind === 'refuse'
    ? `error ${result.refusal.code}`
    : `${result.route.variant.split(':')[1]} ${result.route.code}`
}

describe('nextRoute', () => {
  it.each<[string, Rungs, string[], Partial<RouteRequest>, string]>([
    ['stays', ['ready', 'ready', 'ready'], [], {}, 'int8 requested'],
    ['stays where a submit loads it', ['ready', 'loadable', 'ready'], [], {}, 'int8 requested'],
    [
      'stays although the request forbids to move',
      ['ready', 'ready', 'ready'],
      [],
      { degrade: 'forbid' },
      'int8 requested',
    ],
    ['goes down before up', ['ready', 'failed', 'ready'], [], {}, 'int4 degraded_failure'],
    ['leaves a rung that fails', ['ready', 'ready', 'ready'], ['m:int8'], {}, 'int4 degraded_failure'],
    ['leaves a rung whose breaker is open', ['ready', 'open', 'ready'], [], {}, 'int4 degraded_failure'],
    ['leaves a rung that was named', ['ready', 'open', 'ready'], [], { model: 'm:int8' }, 'int4 degraded_failure'],
    ['goes up', ['ready', 'failed', 'open'], [], {}, 'fp16 raised_failure'],
    ['goes up from min_precision', ['ready', 'failed', 'ready'], [], { minPrecision: 'int8' }, 'fp16 raised_failure'],
    ['does not go where it failed', ['ready', 'ready', 'ready'], ['m:int8', 'm:int4'], {}, 'fp16 raised_failure'],
    ['waits for its own rung', ['ready', 'loading', 'ready'], [], {}, 'wait'],
    ['goes on elsewhere rather than wait for memory', ['ready', 'queueable', 'failed'], [], {}, 'fp16 raised_failure'],
    ['waits for memory at its own rung', ['queueable', 'queueable', 'failed'], [], {}, 'int8 requested'],
    ['waits for memory at another', ['failed', 'failed', 'queueable'], [], {}, 'int4 degraded_failure'],
    [
      'waits for memory where it may not move',
      ['ready', 'queueable', 'ready'],
      [],
      { degrade: 'forbid' },
      'int8 requested',
    ],
    ['waits for another', ['loading', 'failed', 'failed'], [], {}, 'wait'],
    ['waits for its breaker', ['failed', 'open', 'failed'], [], {}, 'wait'],
    ['waits for breaker and engine', ['failed', { breaker: OPEN, state: 'loading' }, 'failed'], [], {}, 'wait'],
    [
      'waits for breaker and load',
      ['failed', { breaker: OPEN, state: 'unloaded', loadable: true }, 'failed'],
      [],
      {},
      'wait',
    ],
    [
      'waits for breaker and memory',
      ['failed', { breaker: OPEN, state: 'unloaded', queueable: true }, 'failed'],
      [],
      {},
      'wait',
    ],
    [
      'does not wait for what failed',
      ['failed', { breaker: OPEN, state: 'failed' }, 'failed'],
      [],
      {},
      'error engine_failed',
    ],
    ['waits for another behind its breaker', [{ breaker: OPEN, state: 'loading' }, 'failed', 'failed'], [], {}, 'wait'],
    ['ends', ['failed', 'failed', 'failed'], [], {}, 'error engine_failed'],
    [
      'ends where that is forbidden',
      ['ready', 'failed', 'ready'],
      [],
      { degrade: 'forbid' },
      'error degrade_forbidden',
    ],
  ])('%s', (_, rungs, failed, request, expected) => {
    expect(go(rungs, failed, request)).toBe(expected)
  })

  it('waits for names that are not read yet', () => {
    const model = modelFacts('m', ['loading', 'ready', 'ready'])
    model.variants.splice(1)
    const lost = { request: routeRequest(), route, failed: new Set<string>(), cause: 'failure' } as const
    expect(nextRoute(model, lost).kind).toBe('wait')
  })

  it('keeps to the policy', () => {
    const model = modelFacts('m', ['ready', 'failed', 'ready'], { policy: { degrade_on: ['oom'] } })
    const lost = { request: routeRequest(), route, failed: new Set<string>(), cause: 'failure' } as const
    expect(nextRoute(model, lost)).toMatchObject({ kind: 'refuse', refusal: { code: 'degrade_forbidden' } })
  })
})
