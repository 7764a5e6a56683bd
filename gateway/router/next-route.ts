import { toRoute } from './explain.js'
import type { Lost, ModelFacts, MoveCause, RouteRequest, RouteResult, RungFacts } from './facts.js'
import { exclusions } from './limits.js'
import { byDistance } from './order.js'
import { withoutFailed } from './places.js'
import { canServe, kindOf, standingOf } from './standing.js'

/**
 * Where a lost request goes on: at its own rung when that is there or coming, since only there the same seed gives the
 * same text; else at the nearest rung of the ladder that is healthy and within its limits, the lower one of two; else
 * where it has to wait for memory that is in use, its own rung first. Never at another model. Pure.
 */
export function nextRoute(model: ModelFacts, lost: Lost): RouteResult {
  const { request, route, failed, cause } = lost
  // As they are at the engines where they did not fail the request.
  const variants = model.variants.map((rung) => withoutFailed(rung, failed))
  const index = model.variants.findIndex(({ name }) => name === route.variant)
  const own = variants[index]
  const place = Math.max(0, index)
  // A breaker that is open lets the request through in a while; it was accepted, so it waits.
  const coming = variants.some((rung) => rung && isComing(rung))
  // A rung whose precision is read from its file has no name before the engine has read it.
  if (index < 0 && coming) return { kind: 'wait', why: `'${route.variant}' is not known yet` }
  const again: RouteResult = {
    kind: 'serve',
    route: { ...route, engine: own?.engine ?? route.engine, probe: own?.breaker.state === 'half_open' },
  }
  if (own && canServe(own)) return again
  const why = own ? whyNot(own) : `'${route.variant}' failed`
  if (own && standingOf(own).kind === 'coming') return { kind: 'wait', why }
  const ownQueue = own && queues(own) ? again : undefined
  const stay = whyStay(model, request, cause)
  if (stay !== undefined && ownQueue) return ownQueue
  if (stay !== undefined)
    return { kind: 'refuse', refusal: { code: 'degrade_forbidden', message: `${why} and ${stay}` } }
  const excluded = exclusions(model, request)
  const others = [...variants.keys()].filter((at) => at !== place && excluded[at] === undefined)
  const nearest = (fits: (rung: RungFacts) => boolean): RouteResult | undefined => {
    const fitting = (at: number): boolean => variants[at] !== undefined && fits(variants[at])
    const next = byDistance(others, place).find(fitting)
    const rung = next === undefined ? undefined : variants[next]
    if (!rung || next === undefined) return undefined
    const code = `${next > place ? 'degraded' : 'raised'}_${cause}` as const
    return { kind: 'serve', route: toRoute(model.id, rung, { code, text: `${why}; the nearest rung goes on` }) }
  }
  const there = nearest(canServe)
  if (there) return there
  if (coming) return { kind: 'wait', why }
  const later = ownQueue ?? nearest(queues)
  if (later) return later
  return { kind: 'refuse', refusal: { code: 'engine_failed', message: `${why} and no other rung can go on` } }
}

function queues(rung: RungFacts): boolean {
  return standingOf(rung).kind === 'queue'
}

/** Also one behind an open breaker whose engine is just being started, or that will have to wait for memory. */
function isComing(rung: RungFacts): boolean {
  if (rung.breaker.state === 'open') return kindOf({ ...rung, breaker: { state: 'closed' } }) !== 'out'
  return standingOf(rung).kind === 'coming'
}

function whyNot(rung: RungFacts): string {
  const standing = standingOf(rung)
  return standing.kind === 'usable' ? `'${rung.name}' failed` : standing.why
}

function whyStay({ id, policy }: ModelFacts, { degrade }: RouteRequest, cause: MoveCause): string | undefined {
  if (degrade === 'forbid') return 'the request forbids another rung'
  return policy.degrade_on.includes(cause) ? undefined : `the policy of '${id}' allows no other rung for ${cause}`
}
