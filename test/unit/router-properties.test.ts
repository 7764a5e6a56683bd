import * as fc from 'fast-check'
import { isDeepStrictEqual } from 'node:util'
import { describe, expect, it } from 'vitest'
import type { Precision } from '../../engine/config/index.js'
import { ERROR_CODES } from '../../gateway/errors.js'
import { decideRoute } from '../../gateway/router/decide.js'
import type {
  BreakerView,
  ModelFacts,
  Route,
  RouteRequest,
  RouteResult,
  RungFacts,
} from '../../gateway/router/facts.js'
import { nextRoute } from '../../gateway/router/next-route.js'
import { rankOf, resolveWish } from '../../gateway/router/precision.js'
import { modelFacts, routeRequest } from '../support/router-facts.js'

const PRECISIONS = ['fp16', 'int8', 'int4'] as const
const CAUSES = ['oom', 'failure', 'pressure', 'deadline'] as const

const breaker: fc.Arbitrary<BreakerView> = fc.oneof(
  { weight: 3, arbitrary: fc.constant<BreakerView>({ state: 'closed' }) },
  fc.constant<BreakerView>({ state: 'half_open' }),
  fc.constantFrom(...CAUSES).map((cause): BreakerView => ({ state: 'open', cause, retryAfterMs: 100, why: 'failed' })),
)

const anyRung: fc.Arbitrary<Partial<RungFacts>> = fc.record({
  state: fc.constantFrom('ready', 'unloaded', 'loading', 'failed'),
  loadable: fc.boolean(),
  queueable: fc.boolean(),
  maxModelLen: fc.constantFrom(0, 64, 1000),
  tokensPerSecond: fc.constantFrom(0, 10, 100),
  waitMs: fc.constantFrom(0, 500),
  breaker,
})

const subset = fc.subarray([...CAUSES])
const model = (id: string): fc.Arbitrary<ModelFacts> =>
  fc
    .record({
      rungs: fc.tuple(anyRung, anyRung, anyRung),
      present: fc.subarray([...PRECISIONS], { minLength: 1 }),
      level: fc.option(fc.constantFrom(...PRECISIONS)),
      degradeOn: subset,
      prefer: fc.constantFrom('highest_that_fits' as const, 'resident' as const, 'fastest' as const),
      floor: fc.option(fc.constantFrom(...PRECISIONS)),
    })
    .map(({ rungs, present, level, degradeOn, prefer, floor }) => {
      const policy = { prefer, degrade_on: degradeOn, ...(floor && { min_precision: floor }) }
      const facts = modelFacts(id, rungs, { policy, tags: [`tag-${id}`], level: level ? `${id}:${level}` : undefined })
      facts.variants = facts.variants.filter(({ precision }) => present.includes(precision))
      return facts
    })

const wish = fc.constantFrom('high' as const, 'medium' as const, 'low' as const, ...PRECISIONS)
const request: fc.Arbitrary<RouteRequest> = fc
  .record(
    {
      model: fc.constantFrom('a', 'b', 'auto', 'tag-a', 'a:int4', 'b:fp16', 'a:int8'),
      precision: wish,
      minPrecision: wish,
      memoryLimitBytes: fc.constantFrom(1e6, 0.6e9, 1.5e9, 3e9),
      speedPriority: fc.double({ min: 0, max: 1, noNaN: true }),
      degrade: fc.constantFrom('allow' as const, 'forbid' as const),
      promptTokens: fc.constantFrom(0, 10, 500, 2000),
      deadlineMs: fc.constantFrom(0, 1, 300, 10_000),
      difficulty: fc.double({ min: 0, max: 1, noNaN: true }),
    },
    { requiredKeys: ['model'] },
  )
  .map(({ difficulty, ...fields }) =>
    routeRequest(fields.model === 'auto' && difficulty !== undefined ? { ...fields, difficulty } : fields),
  )

const models = fc.tuple(model('a'), model('b'))

type Served = { owner: ModelFacts; served: RungFacts; route: Route }

function servedBy(result: RouteResult, among: readonly ModelFacts[]): Served | undefined {
  if (result.kind !== 'serve') return undefined
  const owner = among.find(({ id }) => id === result.route.model)
  const served = owner?.variants.find(({ name }) => name === result.route.variant)
  if (!owner || !served) throw new Error(`${result.route.variant} is not there`)
  return { owner, served, route: result.route }
}

/** Claims that do not hold. */
function broken(claims: Record<string, boolean>): string[] {
  return Object.keys(claims).filter((claim) => !claims[claim])
}

/** What holds of every rung that a request is given, however it got there. */
function faultsOf(asked: RouteRequest, { owner, served, route }: Served): string[] {
  const floors = [owner.policy.min_precision, asked.minPrecision].flatMap((floor) =>
    floor ? [rankOf(resolveWish(floor, owner.variants))] : [],
  )
  return broken({
    'min_precision holds': floors.every((floor) => rankOf(served.precision) <= floor),
    'no breaker is open': served.breaker.state !== 'open',
    'a probe is marked': route.probe === (served.breaker.state === 'half_open'),
    'it can serve': served.state === 'ready' || served.loadable || served.queueable,
    'memory_limit holds': served.neededBytes <= (asked.memoryLimitBytes ?? Infinity),
    'the context holds': served.maxModelLen === 0 || asked.promptTokens + 10 <= served.maxModelLen,
  })
}

function checkAll(numRuns: number, faults: (asked: RouteRequest, among: readonly ModelFacts[]) => string[]): void {
  fc.assert(
    fc.property(request, models, (asked, among) => {
      expect(faults(asked, among)).toEqual([])
    }),
    { numRuns },
  )
}

const isLoading = ({ variants }: ModelFacts): boolean => variants.some(({ state }) => state === 'loading')

describe('every decision', () => {
  it('is a route within the limits, a wait for what is coming, or one error of the catalogue', () => {
    checkAll(2000, (asked, among) => {
      const result = decideRoute(asked, among)
      const found = servedBy(result, among)
      if (found) return faultsOf(asked, found)
      return broken({
        'the error is in the catalogue': result.kind !== 'refuse' || ERROR_CODES.includes(result.refusal.code),
        'something is coming': result.kind !== 'wait' || among.some(isLoading),
      })
    })
    expect.hasAssertions()
  })

  it('is the same for the same facts', () => {
    checkAll(300, (asked, among) =>
      broken({ same: isDeepStrictEqual(decideRoute(asked, among), decideRoute(asked, among)) }),
    )
    expect.hasAssertions()
  })

  it('never degrades where that is forbidden', () => {
    checkAll(2000, (asked, among) => {
      const route = servedBy(decideRoute({ ...asked, degrade: 'forbid' }, among), among)?.route
      return broken({
        'not moved': !/^(degraded|raised|probe|loading|recovering)/.test(route?.code ?? ''),
        'the named rung': !route || !asked.model.includes(':') || route.variant === asked.model,
      })
    })
    expect.hasAssertions()
  })

  it('honours a named rung, or says why not', () => {
    checkAll(2000, (asked, among) => {
      const route = servedBy(decideRoute(asked, among), among)?.route
      if (!route || !asked.model.includes(':')) return []
      return broken({
        'the code says it': (route.variant === asked.model) === (route.code === 'requested'),
        'the code says why':
          /^(requested|degraded_|raised_|min_precision|memory_limit|context|loading|recovering)/.test(route.code),
      })
    })
    expect.hasAssertions()
  })

  it('serves a request that names a healthy rung within its limits from that rung', () => {
    const isHealthy = (rung: RungFacts, floor: Precision | undefined): boolean =>
      rung.state === 'ready' &&
      rung.breaker.state !== 'open' &&
      (rung.maxModelLen === 0 || rung.maxModelLen >= 20) &&
      (floor === undefined || rankOf(rung.precision) <= rankOf(floor))
    checkAll(1000, (_, among) =>
      among.flatMap(({ variants, policy }) =>
        variants
          .filter((rung) => isHealthy(rung, policy.min_precision))
          .map(({ name }) => ({
            name,
            route: servedBy(decideRoute(routeRequest({ model: name }), among), among)?.route,
          }))
          .filter(({ name, route }) => route?.variant !== name || route.code !== 'requested')
          .map(({ name }) => name),
      ),
    )
    expect.hasAssertions()
  })
})

describe('a request that was lost', () => {
  const lost = fc.record({
    asked: request,
    facts: model('a'),
    from: fc.constantFrom(...PRECISIONS),
    failed: fc.subarray(PRECISIONS.map((precision) => `a:${precision}`)),
    cause: fc.constantFrom(...CAUSES),
  })

  it('goes on at its own rung, at the nearest that may serve, or ends in one error', () => {
    fc.assert(
      fc.property(lost, ({ asked, facts, from, failed, cause }) => {
        const before: Route = {
          model: 'a',
          variant: `a:${from}`,
          engine: 0,
          code: 'highest',
          reason: 'highest: x',
          probe: false,
        }
        const result = nextRoute(facts, { request: asked, route: before, failed: new Set(failed), cause })
        const found = servedBy(result, [facts])
        const variant = found?.route.variant
        const moved = found !== undefined && variant !== before.variant
        const claims = {
          'the error is in the catalogue': result.kind !== 'refuse' || ERROR_CODES.includes(result.refusal.code),
          'not to a failed rung': variant === undefined || !failed.includes(variant),
          'it may move': !moved || (asked.degrade !== 'forbid' && facts.policy.degrade_on.includes(cause)),
          'the code says why': !moved || new RegExp(`^(degraded|raised)_${cause}$`).test(found.route.code),
        }
        expect([...broken(claims), ...(moved ? faultsOf(asked, found) : [])]).toEqual([])
      }),
      { numRuns: 2000 },
    )
  })
})
