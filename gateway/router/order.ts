/** In which order a ladder's rungs are tried for a request. Pure; rungs are indices into the ladder, 0 = best. */
import type { ModelFacts, Refusal, RouteRequest, RungFacts } from './facts.js'
import { rankOf, resolveWish } from './precision.js'
import { bandwidthOf, speedOf } from './speed.js'
import { canServe, kindOf } from './standing.js'
import type { Target } from './target.js'

/** How much faster a rung must be to be worth its load, as a binary logarithm: a tenth. Measurements waver. */
const WORTH_A_LOAD = Math.log2(1.1)

/** The rung a request wants. */
export interface Wish {
  /** Its place; between two rungs (x.5) when the ladder does not have it. */
  place: number
  /** The ladder has it. */
  exists: boolean
}

/** The rung that is named or whose precision is asked for; undefined without a wish; a refusal when both differ. */
export function wishOf({ model, rung }: Target, { precision }: RouteRequest): Wish | Refusal | undefined {
  const { variants } = model
  if (precision === undefined && rung === undefined) return undefined
  const asked = precision === undefined ? undefined : resolveWish(precision, variants)
  if (rung) {
    if (asked === undefined || asked === rung.precision) return { place: variants.indexOf(rung), exists: true }
    return {
      code: 'invalid_request',
      message: `precision ${precision} is not that of '${rung.name}'`,
      param: 'precision',
    }
  }
  const wanted = rankOf(asked ?? 'fp16')
  const place = variants.findIndex((variant) => rankOf(variant.precision) === wanted)
  if (place >= 0) return { place, exists: true }
  return { place: variants.filter((variant) => rankOf(variant.precision) < wanted).length - 0.5, exists: false }
}

/** `rungs` nearest to `place` first, the one below before the one above. */
export function byDistance(rungs: readonly number[], place: number): number[] {
  const distance = (index: number): number => Math.abs(index - place) - (index > place ? 0.1 : 0)
  return rungs.toSorted((a, b) => distance(a) - distance(b))
}

/**
 * The rung was left because it did not fit, and would have to be loaded again: that is done when the ladder comes back to
 * it, not for whoever asks first, or memory that comes and goes would be filled and emptied without end.
 */
export function awaitsReturn({ variants, level, levelCause }: ModelFacts, index: number): boolean {
  if (levelCause !== 'oom') return false
  const at = variants.findIndex(({ name }) => name === level)
  const stands = variants[at]
  const rung = variants[index]
  if (index >= at || !stands || !rung || !canServe(stands)) return false
  const kind = kindOf(rung)
  return rung.state !== 'ready' && (kind === 'usable' || kind === 'queue')
}

/** Rungs for a request that wants one at `place`: the nearest first, behind them those that the ladder comes back to. */
export function towards(model: ModelFacts, allowed: readonly number[], place: number): number[] {
  const near = byDistance(allowed, place)
  const awaited = near.filter((index) => awaitsReturn(model, index))
  return awaited.length === 0 ? near : [...near.filter((index) => !awaited.includes(index)), ...awaited]
}

/**
 * Rungs for a request without a wish: from the one that the ladder stands at downwards, then those above it, nearest
 * first. The lower ones are in the order that `speedPriority`, or without it the policy, prefers. `allowed` is ascending.
 */
export function fromLevel(model: ModelFacts, allowed: readonly number[], request: RouteRequest): number[] {
  const { below, above } = splitAtLevel(model, allowed)
  const { speedPriority } = request
  if (speedPriority === undefined) return [...preferred(model, below), ...above]
  return [...(speedPriority > 0 ? bySpeed(model.variants, below, speedPriority) : below), ...above]
}

/** The same rungs as fromLevel where nothing is preferred: the best first. */
export function bestFromLevel(model: ModelFacts, allowed: readonly number[]): number[] {
  const { below, above } = splitAtLevel(model, allowed)
  return [...below, ...above]
}

function splitAtLevel({ variants, level }: ModelFacts, allowed: readonly number[]) {
  const at = Math.max(
    0,
    variants.findIndex(({ name }) => name === level),
  )
  const above = allowed.filter((index) => index < at).toReversed()
  return { below: allowed.filter((index) => index >= at), above }
}

function preferred({ variants, policy }: ModelFacts, rungs: readonly number[]): readonly number[] {
  if (policy.prefer === 'highest_that_fits') return rungs
  const isLoaded = (index: number): boolean => {
    const rung = variants[index]
    return rung?.state === 'ready' && canServe(rung)
  }
  if (policy.prefer === 'resident') return rungs.toSorted((a, b) => Number(isLoaded(b)) - Number(isLoaded(a)))
  const bandwidth = bandwidthOf(variants)
  const speed = (index: number): number => {
    const rung = variants[index]
    return rung ? speedOf(rung, bandwidth) + (isLoaded(index) ? WORTH_A_LOAD : 0) : 0
  }
  return rungs.toSorted((a, b) => speed(b) - speed(a))
}

function bySpeed(ladder: readonly RungFacts[], rungs: readonly number[], priority: number): number[] {
  const speed = (index: number): number => ladder[index]?.tokensPerSecond ?? 0
  const fastest = Math.max(...rungs.map(speed), 1e-9)
  const score = (index: number): number =>
    (1 - priority) * (ladder[index]?.quality ?? 0) + priority * (speed(index) / fastest)
  return rungs.toSorted((a, b) => score(b) - score(a))
}
