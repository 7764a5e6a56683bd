/** Why a rung was chosen, in a code and a sentence; and why none was. Pure. */
import type { ModelFacts, MoveCause, Refusal, Route, RouteCode, RouteRequest, RungFacts } from './facts.js'
import { type Exclusion, explainExclusion } from './limits.js'
import { awaitsReturn, bestFromLevel, type Wish } from './order.js'
import { trialPlace } from './places.js'
import { type Out, type Standing, standingOf } from './standing.js'

/** A request on its way through a ladder; rungs are indices, 0 = best. */
export interface Search {
  model: ModelFacts
  request: RouteRequest
  wish: Wish | undefined
  /** What excludes each rung of the ladder. */
  excluded: readonly (Exclusion | undefined)[]
  /** The rungs that may serve, the one to be tried first in front. */
  order: readonly number[]
}

/** Where a rung stood that was passed over. */
export type Left = Exclude<Standing, { kind: 'usable' }>

interface Explanation {
  code: RouteCode
  text: string
}

/** The route to a rung; where its breaker is half open the request is its probe. */
export function toRoute(model: string, rung: RungFacts, { code, text }: Explanation): Route {
  const { name: variant, engine, breaker } = trialPlace(rung) ?? rung
  return { model, variant, engine, code, reason: `${code}: ${text}`, probe: breaker.state === 'half_open' }
}

/** Why the rung at `index` serves; `left` is where the one tried first stood, when it was passed over. */
export function explain(search: Search, index: number, left: Left | undefined): Explanation {
  const { model, wish, order } = search
  const first = order[0] ?? index
  if (wish && !wish.exists && index === first) {
    return { code: 'nearest', text: 'the ladder has no rung of the precision asked for' }
  }
  if (wish?.exists) {
    const { place } = wish
    const wanted = model.variants[place]
    if (index === place) return { code: 'requested', text: 'as asked for' }
    if (wanted && order.includes(place) && awaitsReturn(model, place)) return recovering(model, wanted)
    if (index === first) return excludedWish(search, place)
  }
  if (index !== first && left) return moved(index > first, left)
  return unasked(search, index)
}

function recovering({ levelCause }: ModelFacts, { precision }: RungFacts): Explanation {
  const cause = levelCause === undefined ? '' : ` since it was left (${levelCause})`
  return { code: 'recovering', text: `${precision} is usable again, but not for long enough${cause}` }
}

function excludedWish({ model, excluded }: Search, place: number): Explanation {
  const rung = model.variants[place]
  const code = excluded[place] ?? 'nearest'
  return { code, text: rung ? `${rung.precision} ${explainExclusion(excluded[place], rung)}` : '' }
}

function moved(down: boolean, left: Left): Explanation {
  if (left.kind === 'coming') return { code: 'loading', text: left.why }
  return { code: codeOfMove(down, causeOf(left)), text: left.why }
}

function codeOfMove(down: boolean, cause: MoveCause): RouteCode {
  return `${down ? 'degraded' : 'raised'}_${cause}`
}

function causeOf(left: Exclude<Left, { kind: 'coming' }>): MoveCause {
  return left.kind === 'queue' ? 'pressure' : left.cause
}

/** Nothing was asked for: what keeps the rungs above from serving. */
function unasked({ model, request, excluded }: Search, index: number): Explanation {
  const { variants, level } = model
  if (request.speedPriority !== undefined && request.speedPriority > 0) {
    return { code: 'speed', text: `speed_priority is ${request.speedPriority}` }
  }
  const preferred = byPolicy(model, excluded, index)
  if (preferred) return preferred
  if (index === 0) return { code: 'highest', text: 'the best rung' }
  const above = excluded.findIndex((exclusion, place) => place < index && exclusion === undefined)
  const better = variants[above]
  if (!better) return excludedWish({ model, request, excluded, wish: undefined, order: [] }, index - 1)
  const standing = standingOf(better)
  if (standing.kind === 'coming') return { code: 'loading', text: standing.why }
  if (standing.kind !== 'usable') return { code: codeOfMove(true, causeOf(standing)), text: standing.why }
  if (level === better.name) return { code: 'highest', text: 'the best rung' }
  return recovering(model, better)
}

/** The policy's `prefer` put the rung before the best one that can serve. */
function byPolicy(model: ModelFacts, excluded: Search['excluded'], index: number): Explanation | undefined {
  const { variants, policy } = model
  if (policy.prefer === 'highest_that_fits') return undefined
  const allowed = [...excluded.keys()].filter((place) => excluded[place] === undefined)
  const best = bestFromLevel(model, allowed).flatMap((place) => variants[place] ?? [])
  const usual = best.find((rung) => standingOf(rung).kind === 'usable')
  const chosen = variants[index]
  if (!usual || !chosen || usual === chosen) return undefined
  const { prefer: code } = policy
  if (code === 'fastest') return { code, text: `${chosen.precision} answers faster than ${usual.precision}` }
  return { code, text: `${chosen.precision} is loaded, ${usual.precision} would have to be` }
}

/** No rung can serve now. */
export function unavailable({ id }: ModelFacts, whys: readonly Out[]): Refusal {
  const retries = whys.flatMap(({ retryAfterMs }) => retryAfterMs ?? [])
  const late = whys.length > 0 && whys.every(({ cause }) => cause === 'deadline')
  const reasons = whys.map(({ why }) => why).join(', ')
  if (late) return { code: 'deadline_exceeded', message: `'${id}' cannot begin to answer within the deadline` }
  return {
    code: 'engine_unavailable',
    message: `no rung of '${id}' can serve (${reasons || 'it has none'})`,
    retryAfterMs: Math.min(10_000, ...retries),
  }
}

/** The rung wanted cannot serve, and the request or the policy allows no other. */
export function stuck({ request, model }: Search, rung: RungFacts, { why, cause, retryAfterMs }: Out): Refusal {
  const forbids = request.degrade === 'forbid' ? 'the request forbids' : `the policy of '${model.id}' does not allow`
  if (cause === 'deadline') {
    return { code: 'deadline_exceeded', message: `${why}, and ${forbids} another rung than '${rung.name}'` }
  }
  return {
    code: 'degrade_forbidden',
    message: `${why}, and ${forbids} another rung than '${rung.name}'`,
    param: 'degrade',
    retryAfterMs: retryAfterMs ?? 10_000,
  }
}

/** The rung wanted is excluded, or not there, and the request allows no other. */
export function refuseWish({ model, request, wish, excluded }: Search): Refusal {
  const rung = wish?.exists ? model.variants[wish.place] : undefined
  if (!rung) {
    const has = model.variants.map(({ precision }) => precision).join(', ')
    return {
      code: 'no_rung_allowed',
      message: `'${model.id}' has no ${request.precision} rung (${has})`,
      param: 'precision',
    }
  }
  const why = explainExclusion(excluded[wish?.place ?? 0], rung)
  return {
    code: 'no_rung_allowed',
    message: `'${rung.name}' ${why}, and the request forbids another rung`,
    param: 'degrade',
  }
}
