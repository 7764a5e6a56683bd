import { toRoute } from './explain.js'
import type { Lost, ModelFacts, MoveCause, RouteRequest, RouteResult, RungFacts } from './facts.js'
import { exclusions } from './limits.js'
import { byDistance } from './order.js'
import { standingOf } from './standing.js'

/**
 * Where a lost request goes on: at its own rung when that is there or coming, since only there the same seed gives the
 * same text; else at the nearest rung of the ladder that is healthy and within its limits, the lower one of two; else
 * where it has to wait for memory that is in use, its own rung first. Never at another model. Pure.
 */
export function nextRoute(model: ModelFacts, lost: Lost): RouteResult {
  const { request, route, failed, cause } = lost
  const { variants } = model
  const own = variants.find(({ name }) => name === route.variant)
  const place = own ? variants.indexOf(own) : 0
  const usable = (rung: RungFacts): boolean => !failed.has(rung.name) && standingOf(rung).kind === 'usable'
  // A breaker that is open lets the request through in a while; it was accepted, so it waits.
  const coming = variants.some((rung) => !failed.has(rung.name) && isComing(rung))
  // A rung whose precision is read from its file has no name before the engine has read it.
  if (!own && coming) return { kind: 'wait', why: `'${route.variant}' is not known yet` }
  const again: RouteResult = {
    kind: 'serve',
    route: { ...route, engine: own?.engine ?? route.engine, probe: own?.breaker.state === 'half_open' },
  }
  if (own && usable(own)) return again
  const why = own && !failed.has(own.name) ? whyNot(own) : `'${route.variant}' failed`
  if (own && !failed.has(own.name) && standingOf(own).kind === 'coming') return { kind: 'wait', why }
  const queues = (rung: RungFacts): boolean => !failed.has(rung.name) && standingOf(rung).kind === 'queue'
  const ownQueue = own && queues(own) ? again : undefined
  const stay = whyStay(model, request, cause)
  if (stay !== undefined && ownQueue) return ownQueue
  if (stay !== undefined)
    return { kind: 'refuse', refusal: { code: 'degrade_forbidden', message: `${why} and ${stay}` } }
  const excluded = exclusions(model, request)
  const others = [...variants.keys()].filter((index) => index !== place && excluded[index] === undefined)
  const nearest = (fits: (rung: RungFacts) => boolean): RouteResult | undefined => {
    const next = byDistance(others, place).find((index) => variants[index] && fits(variants[index]))
    const rung = next === undefined ? undefined : variants[next]
    if (!rung || next === undefined) return undefined
    const code = `${next > place ? 'degraded' : 'raised'}_${cause}` as const
    return { kind: 'serve', route: toRoute(model.id, rung, { code, text: `${why}; the nearest rung goes on` }) }
  }
  const there = nearest(usable)
  if (there) return there
  if (coming) return { kind: 'wait', why }
  const later = ownQueue ?? nearest(queues)
  if (later) return later
  return { kind: 'refuse', refusal: { code: 'engine_failed', message: `${why} and no other rung can go on` } }
}

function isComing(rung: RungFacts): boolean {
  if (rung.breaker.state === 'open') return rung.state === 'ready' || rung.loadable
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
