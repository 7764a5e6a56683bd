import type { Route, RouteResult, Target } from '../router/route.js'
import type { VariantEntry } from '../services.js'

/** Where a request was served until it was lost. */
export interface Leaving {
  route: Route
  /** Rungs that failed the request again and again without getting on. */
  failed: ReadonlySet<string>
  /** The request may go on at another rung. */
  mayMove: boolean
}

/**
 * Where a request that was lost in mid-answer goes on: at its own rung when that is there or coming, since only there
 * the same seed gives the same text; else at the nearest rung of the ladder, the lower one of two. A rung that the
 * client named is never left. Pure.
 */
export function nextRoute({ model, rung }: Target, { route, failed, mayMove }: Leaving): RouteResult {
  const coming = model.variants.some(({ name, state }) => state === 'loading' && !failed.has(name))
  // A rung whose precision is read from its file has no name before the engine has read it.
  const isKnown = model.variants.some(({ name }) => name === route.variant)
  if (!isKnown && coming) return { kind: 'wait', why: `'${route.variant}' is not known yet` }
  const usable = model.variants.filter(({ name }) => !failed.has(name))
  const own = usable.find(({ name }) => name === route.variant)
  if (own?.state === 'ready') return { kind: 'serve', route }
  const why = `'${route.variant}' ${own ? `is ${own.state}` : 'failed'}`
  if (own?.state === 'loading') return { kind: 'wait', why }
  if (rung) return { kind: 'failed', why: `${why} and was asked for by name` }
  if (!mayMove) return { kind: 'failed', why: `${why} and the request forbids to degrade` }
  const place = model.variants.findIndex(({ name }) => name === route.variant)
  const others = byDistance(model.variants, place).filter((variant) => usable.includes(variant))
  const next = others.find(({ state }) => state === 'ready')
  if (next) return { kind: 'serve', route: { model: model.id, variant: next.name, reason: `nearest rung; ${why}` } }
  return coming ? { kind: 'wait', why } : { kind: 'failed', why: `${why} and no other rung is ready` }
}

/** The ladder (best precision first) without the rung at `place`, nearest first, below before above. */
function byDistance(ladder: readonly VariantEntry[], place: number): VariantEntry[] {
  const distance = (index: number): number => 2 * Math.abs(index - place) - (index > place ? 1 : 0)
  return ladder
    .map((variant, index) => ({ variant, index }))
    .filter(({ index }) => index !== place)
    .toSorted((a, b) => distance(a.index) - distance(b.index))
    .map(({ variant }) => variant)
}
