/**
 * `model: "auto"`: which model and rung answers a request best. Every rung of every model that can serve now and is
 * within the limits gets a score from three figures; docs/routing.md states them.
 */
import { toRoute, unavailable } from './explain.js'
import type { ModelFacts, RouteRequest, RouteResult, RungFacts } from './facts.js'
import { bytesOf, exclusionOf, exclusions, refuseExcluded, worstRank } from './limits.js'
import { awaitsReturn } from './order.js'
import { resolveWish } from './precision.js'
import { bandwidthOf, speedOf } from './speed.js'
import { kindOf, meetsDeadline } from './standing.js'

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

const USUAL_DIFFICULTY = 0.5

/** A rung that can serve, and what it is worth whatever is asked for. */
interface Candidate {
  model: ModelFacts
  rung: RungFacts
  /** log2 of the weights of the unquantized model that would be as good. */
  strength: number
  /** log2 of tokens per second, measured or guessed. */
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
  const candidates = allowedOf(candidatesOf(models), request)
  const eligible = only ? candidates.filter(({ model }) => model === only) : candidates
  const best = bestOf(request, candidates, eligible)
  if (best) {
    const { difficulty = USUAL_DIFFICULTY } = request
    const text = `difficulty ${difficulty.toFixed(2)}, best of ${candidates.length} rungs that can serve`
    return { kind: 'serve', route: toRoute(best.model.id, best.rung, { code: 'auto', text }) }
  }
  if (eligible.length > 0) return refuse('deadline_exceeded', 'no model can begin to answer within the deadline')
  return refuseAll(request, only ? [only] : models)
}

/** Those within the request's limits and its models' policies. Called with every rung of the box: makes no text. */
function allowedOf(candidates: readonly Candidate[], request: RouteRequest): Candidate[] {
  const allowed: Candidate[] = []
  let model: ModelFacts | undefined
  let worst = Infinity
  let wanted: string | undefined
  for (const candidate of candidates) {
    const { rung } = candidate
    if (candidate.model !== model) {
      model = candidate.model
      worst = worstRank(model, request)
      wanted = request.precision === undefined ? undefined : resolveWish(request.precision, model.variants)
    }
    if (wanted !== undefined && rung.precision !== wanted) continue
    if (exclusionOf(rung, request, worst) === undefined) allowed.push(candidate)
  }
  return allowed
}

/** Facts never change once they are made, and serve many decisions. */
const known = new WeakMap<readonly ModelFacts[], Candidate[]>()

function candidatesOf(models: readonly ModelFacts[]): Candidate[] {
  const found = known.get(models)
  if (found) return found
  const bandwidth = bandwidthOf(models.flatMap(({ variants }) => variants))
  const made = models.flatMap((model) => {
    const weights = Math.log2(weightsOf(model))
    const serving = model.variants.filter((rung, index) => mayServe(rung) && !awaitsReturn(model, index))
    return serving.map((rung) => ({
      model,
      rung,
      strength: weights + QUALITY_DOUBLINGS * Math.log2(rung.quality),
      speed: speedOf(rung, bandwidth),
    }))
  })
  known.set(models, made)
  return made
}

function mayServe(rung: RungFacts): boolean {
  const kind = kindOf(rung)
  return kind === 'usable' || kind === 'queue'
}

/** About how many weights the model has. */
function weightsOf({ variants }: ModelFacts): number {
  const rung = variants.find((variant) => bytesOf(variant) > 0)
  return rung ? bytesOf(rung) / WEIGHT_BYTES[rung.precision] : 1
}

/** The eligible rung with the best score that can begin before the deadline; the first of equals. */
function bestOf(
  request: RouteRequest,
  all: readonly Candidate[],
  eligible: readonly Candidate[],
): Candidate | undefined {
  const strength = new Range()
  const speed = new Range()
  for (const candidate of all) {
    strength.add(candidate.strength)
    speed.add(candidate.speed)
  }
  let best: Candidate | undefined
  let highest = -Infinity
  for (const candidate of eligible) {
    if (!meetsDeadline(candidate.rung, request, 'begun')) continue
    const value = score(candidate.rung, request, strength.place(candidate.strength), speed.place(candidate.speed))
    if (value <= highest) continue
    best = candidate
    highest = value
  }
  return best
}

/** `strength` and `speed` from 0 to 1. */
function score(rung: RungFacts, request: RouteRequest, strength: number, speed: number): number {
  const { difficulty = USUAL_DIFFICULTY, speedPriority = 0 } = request
  const shortfall = Math.max(0, difficulty - strength)
  const loading = Math.min(MAX_LOAD_PENALTY, (rung.loadMs / 1000) * LOAD_PENALTY_PER_SECOND)
  const waiting = kindOf(rung) === 'queue' ? QUEUE_PENALTY : 0
  const fast = (SPEED + (1 - SPEED) * speedPriority) * speed
  return fast - (1 - speedPriority) * SHORTFALL * shortfall - loading - waiting
}

/** The least and the greatest of some values. */
class Range {
  private least = Infinity
  private greatest = -Infinity

  add(value: number): void {
    if (value < this.least) this.least = value
    if (value > this.greatest) this.greatest = value
  }

  /** Where a value lies between them: 0 to 1; 1 when all are the same. */
  place(value: number): number {
    const width = this.greatest - this.least
    return width > 0 ? (value - this.least) / width : 1
  }
}

/** Nothing can serve: wait where a rung is coming, else say what is wrong. */
function refuseAll(request: RouteRequest, models: readonly ModelFacts[]): RouteResult {
  const coming = models.some((model) => model.variants.some((rung) => kindOf(rung) === 'coming'))
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
