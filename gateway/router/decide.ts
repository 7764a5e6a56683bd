import { chooseAutomatically } from './auto.js'
import { explain, type Left, refuseWish, type Search, stuck, toRoute, unavailable } from './explain.js'
import type { ModelFacts, MoveCause, Refusal, RouteRequest, RouteResult, RungFacts } from './facts.js'
import { exclusions, refuseExcluded } from './limits.js'
import { fromLevel, towards, wishOf } from './order.js'
import { answerMs, meetsDeadline, type Out, type Standing, standingOf, type Timeliness } from './standing.js'
import { AUTO, findTarget, type Target } from './target.js'

/**
 * The rung that serves a request: what it asks for, within its limits and the policy's, from what is healthy and has
 * memory now. Pure: the same request and facts give the same answer.
 */
export function decideRoute(request: RouteRequest, models: readonly ModelFacts[]): RouteResult {
  if (request.model === AUTO) return chooseAutomatically(request, models)
  const target = findTarget(request.model, models)
  if (target && request.difficulty !== undefined) return chooseAutomatically(request, models, target.model)
  if (target) return routeOn(target, request)
  return refuse({ code: 'model_not_found', message: `the model '${request.model}' does not exist`, param: 'model' })
}

function routeOn(target: Target, request: RouteRequest): RouteResult {
  const { model } = target
  const wish = wishOf(target, request)
  if (wish && 'code' in wish) return refuse(wish)
  const excluded = exclusions(model, request)
  const allowed = [...excluded.keys()].filter((index) => excluded[index] === undefined)
  const [best] = allowed
  if (best === undefined) return refuse(refuseExcluded(model, request, excluded))
  const search = { model, request, wish, excluded, order: allowed }
  if (request.degrade === 'forbid') {
    if (wish && !allowed.includes(wish.place)) return refuse(refuseWish(search))
    return walk({ ...search, order: [wish?.place ?? best] })
  }
  if (wish) return walk({ ...search, order: towards(model, allowed, wish.place) })
  const order = fromLevel(model, allowed, request)
  const probe = findProbe(model, request, order)
  return probe ? serveProbe(model, probe) : walk({ ...search, order })
}

/** A better rung than the first choice, whose breaker lets one request through to see whether it works again. */
function findProbe(model: ModelFacts, request: RouteRequest, order: readonly number[]): RungFacts | undefined {
  const first = order[0] ?? 0
  const index = order
    .toSorted((a, b) => a - b)
    .find((place) => place < first && canProbe(model, model.variants[place], request))
  return index === undefined ? undefined : model.variants[index]
}

function canProbe({ policy }: ModelFacts, rung: RungFacts | undefined, request: RouteRequest): boolean {
  if (rung?.breaker.state !== 'half_open') return false
  // A load is no trial where the policy keeps to what is loaded.
  if (policy.prefer === 'resident' && rung.state !== 'ready') return false
  return standingOf(rung).kind === 'usable' && meetsDeadline(rung, request, 'begun')
}

function serveProbe(model: ModelFacts, rung: RungFacts): RouteResult {
  const text = `tries whether ${rung.precision} works again`
  return { kind: 'serve', route: toRoute(model.id, rung, { code: 'probe', text }) }
}

function walk(search: Search): RouteResult {
  if (search.request.deadlineMs === 0) return attempt(search, 'begun')
  const whole = attempt(search, 'whole')
  return whole.kind === 'serve' ? whole : (hurry(search) ?? attempt(search, 'begun'))
}

/** No rung is sure to end before the deadline: the fastest one that can begin, where the request may be moved. */
function hurry(search: Search): RouteResult | undefined {
  const { model, request, order } = search
  const [first] = order
  const wanted = first === undefined ? undefined : model.variants[first]
  if (first === undefined || !wanted) return undefined
  const standing = standingFor(wanted, request, 'whole')
  if (standing.kind !== 'out' || !mayLeave(search, standing.cause)) return undefined
  const endMs = (index: number): number => {
    const rung = model.variants[index]
    if (!rung || standingFor(rung, request, 'begun').kind !== 'usable') return Infinity
    return answerMs(rung, request.promptTokens, request.maxTokens ?? 1)
  }
  const fastest = order.reduce((best, index) => (endMs(index) < endMs(best) ? index : best), first)
  return endMs(fastest) === Infinity ? undefined : serve(search, fastest, fastest === first ? undefined : standing)
}

/** Tries the rungs in order; those that would miss the deadline are passed over. */
function attempt(search: Search, timeliness: Timeliness): RouteResult {
  const { model, request, wish, order } = search
  let left: Left | undefined
  let queue: number | undefined
  let coming: string | undefined
  const outs: Out[] = []
  for (const [position, index] of order.entries()) {
    const rung = model.variants[index]
    if (!rung) continue
    const standing = standingFor(rung, request, timeliness)
    if (standing.kind === 'usable') return serve(search, index, left)
    const isFirst = position === 0
    const isWanted = isFirst && index === wish?.place
    if (standing.kind === 'queue') {
      if (isWanted || (isFirst && !mayLeave(search, 'pressure'))) return serve(search, index, left)
      queue ??= index
    } else if (standing.kind === 'coming') {
      if (isWanted || request.degrade === 'forbid') return { kind: 'wait', why: `'${rung.name}': ${standing.why}` }
      coming ??= standing.why
    } else {
      if (isFirst && !mayLeave(search, standing.cause)) return refuse(stuck(search, rung, standing))
      outs.push(standing)
    }
    left ??= standing
  }
  if (queue !== undefined) return serve(search, queue, queue === order[0] ? undefined : left)
  if (coming !== undefined) return { kind: 'wait', why: `no rung of '${model.id}' is ready: ${coming}` }
  return refuse(unavailable(model, outs))
}

function standingFor(rung: RungFacts, request: RouteRequest, timeliness: Timeliness): Standing {
  const standing = standingOf(rung)
  const serves = standing.kind === 'usable' || standing.kind === 'queue'
  if (!serves || meetsDeadline(rung, request, timeliness)) return standing
  return { kind: 'out', cause: 'deadline', why: `${rung.precision} would be too late` }
}

/** Whether request and policy let a request leave the rung that it would get, for that cause. */
function mayLeave({ model, request }: Search, cause: MoveCause): boolean {
  return request.degrade !== 'forbid' && model.policy.degrade_on.includes(cause)
}

function serve(search: Search, index: number, left: Left | undefined): RouteResult {
  const rung = search.model.variants[index]
  if (!rung) return refuse(unavailable(search.model, []))
  return { kind: 'serve', route: toRoute(search.model.id, rung, explain(search, index, left)) }
}

function refuse(refusal: Refusal): RouteResult {
  return { kind: 'refuse', refusal }
}
