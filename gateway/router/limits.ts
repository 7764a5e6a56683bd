/** The limits that a request and its model's policy put on the rung, whatever the box's state is. Pure. */
import type { ModelFacts, Refusal, RouteRequest, RungFacts } from './facts.js'
import { rankOf, resolveWish } from './precision.js'

/** Which limit excludes a rung. */
export type Exclusion = 'min_precision' | 'memory_limit' | 'context'

/** What excludes each rung of the ladder, in its order; undefined = nothing. */
export function exclusions(model: ModelFacts, request: RouteRequest): (Exclusion | undefined)[] {
  const worst = worstRank(model, request)
  return model.variants.map((rung) => exclusionOf(rung, request, worst))
}

/** Rank of the worst precision that the request and the policy leave. */
export function worstRank({ variants, policy }: ModelFacts, { minPrecision }: RouteRequest): number {
  const asked = minPrecision === undefined ? Infinity : rankOf(resolveWish(minPrecision, variants))
  return Math.min(asked, policy.min_precision === undefined ? Infinity : rankOf(policy.min_precision))
}

/** What excludes one rung, given the worst rank. */
export function exclusionOf(rung: RungFacts, request: RouteRequest, worst: number): Exclusion | undefined {
  const { memoryLimitBytes = Infinity, promptTokens, maxTokens = 1 } = request
  if (rankOf(rung.precision) > worst) return 'min_precision'
  if (bytesOf(rung) > memoryLimitBytes) return 'memory_limit'
  return rung.maxModelLen > 0 && promptTokens + maxTokens > rung.maxModelLen ? 'context' : undefined
}

/** Bytes that a rung takes on a device; 0 while they are not known. */
export function bytesOf({ neededBytes, weightBytes }: RungFacts): number {
  return Math.max(neededBytes, weightBytes)
}

/** The refusal for a request that every rung is excluded for. */
export function refuseExcluded(
  model: ModelFacts,
  request: RouteRequest,
  excluded: readonly (Exclusion | undefined)[],
): Refusal {
  if (excluded.includes('context')) return refuseContext(model, request, excluded)
  const rungs = model.variants.map((rung, index) => `${rung.precision} ${explainExclusion(excluded[index], rung)}`)
  const param = request.memoryLimitBytes !== undefined ? 'memory_limit_gb' : 'min_precision'
  return { code: 'no_rung_allowed', message: `no rung of '${model.id}' may serve this: ${rungs.join(', ')}`, param }
}

/** Says why one rung is excluded, to go after its name. */
export function explainExclusion(exclusion: Exclusion | undefined, rung: RungFacts): string {
  if (exclusion === 'memory_limit') return `takes ${bytesOf(rung)} bytes, more than memory_limit_gb`
  if (exclusion === 'context') return `has a context of ${rung.maxModelLen} tokens`
  return 'is below min_precision'
}

/** The longest rung that the other limits leave, and one beyond them that would hold the request. */
function refuseContext(
  { variants }: ModelFacts,
  { promptTokens, maxTokens }: RouteRequest,
  excluded: readonly (Exclusion | undefined)[],
): Refusal {
  const longest = longestOf(variants.filter((_, index) => excluded[index] === 'context'))
  const other = longestOf(variants)
  const needs = promptTokens + (maxTokens ?? 1)
  const asked = maxTokens === undefined ? '' : ` and max_tokens is ${maxTokens}`
  const limit = `'${longest?.name}' has a context of ${longest?.maxModelLen} tokens`
  const fits =
    other && other.maxModelLen >= needs ? `'${other.name}' would fit (${other.maxModelLen})` : 'no rung would fit'
  return {
    code: 'context_length_exceeded',
    message: `the prompt has ${promptTokens} tokens${asked}, but ${limit}; ${fits}`,
    param: maxTokens !== undefined && promptTokens < (longest?.maxModelLen ?? 0) ? 'max_tokens' : 'prompt',
  }
}

function longestOf(rungs: readonly RungFacts[]): RungFacts | undefined {
  return rungs.reduce<RungFacts | undefined>(
    (best, rung) => (best === undefined || rung.maxModelLen > best.maxModelLen ? rung : best),
    undefined,
  )
}
