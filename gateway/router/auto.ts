/**
 * `model: "auto"`: which model and rung answers a request best. Every rung of every model that can serve now and is
 * within the limits gets a score from three figures; docs/routing.md states them.
 */
import { toRoute, unavailable } from './explain.js'
import type { ModelFacts, RouteRequest, RouteResult, RungFacts } from './facts.js'
import { bytesOf, exclusions, refuseExcluded } from './limits.js'
import { resolveWish } from './precision.js'
import { meetsDeadline, standingOf } from './standing.js'

/** Bytes that a weight takes on a device, about. */
const WEIGHT_BYTES = { fp16: 2, int8: 1.06, int4: 0.56 } as const

/** How many doublings of the model's size a halved quality is worth. */
const QUALITY_DOUBLINGS = 10

/** What missing strength costs, per share of the range between the weakest and the strongest rung. */
const SHORTFALL = 2
/** What speed is worth to a request that does not ask for it. */
const SPEED = 0.25
/** What a request that has to wait for memory loses. */
const QUEUE_PENALTY = 0.3
/** What a second of loading costs, and all loading at most. */
const LOAD_PENALTY_PER_SECOND = 0.05
const MAX_LOAD_PENALTY = 0.3

interface Candidate {
  model: ModelFacts
  rung: RungFacts
  queued: boolean
  /** log2 of the weights of the unquantized model that would be as good. */
  strength: number
  /** log2 of tokens per second. */
  speed: number
}

/**
 * Chooses among all models: the strongest rung for a hard request, the fastest that will do for an easy one. With `only`
 * that model's rungs are weighed in the same way, beside the others. Pure.
 */
export function chooseAutomatically(
  request: RouteRequest,
  models: readonly ModelFacts[],
  only?: ModelFacts,
): RouteResult {
  const candidates = models.flatMap((model) => candidatesOf(model, request))
  const eligible = only ? candidates.filter(({ model }) => model === only) : candidates
  const timely = eligible.filter(({ rung }) => meetsDeadline(rung, request, 'begun'))
  const [first] = timely
  if (first) return serveBest(request, candidates, timely, first)
  if (eligible.length > 0) return refuse('deadline_exceeded', 'no model can begin to answer within the deadline')
  return refuseAll(request, only ? [only] : models)
}

function candidatesOf(model: ModelFacts, request: RouteRequest): Candidate[] {
  const excluded = exclusions(model, request)
  const only = request.precision === undefined ? undefined : resolveWish(request.precision, model.variants)
  return model.variants.flatMap((rung, index) => {
    if (excluded[index] !== undefined || (only !== undefined && rung.precision !== only)) return []
    const { kind } = standingOf(rung)
    if (kind !== 'usable' && kind !== 'queue') return []
    return [{ model, rung, queued: kind === 'queue', strength: strengthOf(model, rung), speed: speedOf(rung) }]
  })
}

function strengthOf({ variants }: ModelFacts, { quality }: RungFacts): number {
  const known = variants.find((rung) => bytesOf(rung) > 0)
  const weights = known ? bytesOf(known) / WEIGHT_BYTES[known.precision] : 1
  return Math.log2(weights) + QUALITY_DOUBLINGS * Math.log2(quality)
}

/** Decoding reads every weight once per token: where nothing is measured, speed goes by size. */
function speedOf(rung: RungFacts): number {
  return Math.log2(rung.tokensPerSecond > 0 ? rung.tokensPerSecond : 1e10 / Math.max(1, bytesOf(rung)))
}

function serveBest(
  request: RouteRequest,
  all: readonly Candidate[],
  candidates: readonly Candidate[],
  first: Candidate,
): RouteResult {
  const { difficulty = 0.5, speedPriority = 0 } = request
  const strength = rangeOf(all.map((candidate) => candidate.strength))
  const speed = rangeOf(all.map((candidate) => candidate.speed))
  const score = (candidate: Candidate): number => {
    const shortfall = Math.max(0, difficulty - strength(candidate.strength))
    const loading = Math.min(MAX_LOAD_PENALTY, (candidate.rung.loadMs / 1000) * LOAD_PENALTY_PER_SECOND)
    const fast = (SPEED + (1 - SPEED) * speedPriority) * speed(candidate.speed)
    return fast - (1 - speedPriority) * SHORTFALL * shortfall - loading - (candidate.queued ? QUEUE_PENALTY : 0)
  }
  let best = first
  let highest = score(first)
  for (const candidate of candidates) {
    const value = score(candidate)
    if (value > highest) [best, highest] = [candidate, value]
  }
  const text = `difficulty ${difficulty.toFixed(2)}, best of ${all.length} rungs that can serve`
  return { kind: 'serve', route: toRoute(best.model.id, best.rung, { code: 'auto', text }) }
}

/** Places a value between the least and the greatest: 0 to 1; 1 when all are the same. */
function rangeOf(values: readonly number[]): (value: number) => number {
  const least = Math.min(...values)
  const width = Math.max(...values) - least
  return (value) => (width > 0 ? (value - least) / width : 1)
}

/** Nothing can serve: wait where a rung is coming, else say what is wrong. */
function refuseAll(request: RouteRequest, models: readonly ModelFacts[]): RouteResult {
  const coming = models.some((model) => model.variants.some((rung) => standingOf(rung).kind === 'coming'))
  if (coming) return { kind: 'wait', why: 'no rung of any model is ready' }
  const refusals = models.map((model) => {
    const excluded = exclusions(model, request)
    return excluded.includes(undefined) ? unavailable(model, []) : refuseExcluded(model, request, excluded)
  })
  const context = refusals.find(({ code }) => code === 'context_length_exceeded')
  const limited = refusals.every(({ code }) => code !== 'engine_unavailable') ? (context ?? refusals[0]) : undefined
  if (limited) return { kind: 'refuse', refusal: limited }
  return refuse('engine_unavailable', 'no model can serve now')
}

function refuse(code: 'deadline_exceeded' | 'engine_unavailable', message: string): RouteResult {
  const retry = code === 'engine_unavailable' ? { retryAfterMs: 10_000 } : {}
  return { kind: 'refuse', refusal: { code, message, ...retry } }
}
