/** Which engine serves a rung that several have: the breaker of each has the first word. Pure. */
import type { RungFacts, RungPlace } from './facts.js'
import { kindOf } from './standing.js'

/**
 * `places`: one rung as each engine has it, who serves it soonest in front. The first of those that are well, with the
 * others as its `elsewhere`.
 */
export function bestPlace(places: readonly [RungFacts, ...RungFacts[]]): RungFacts {
  const [first] = places
  if (places.length === 1) return first
  const [best = first, ...elsewhere] = places.toSorted((a, b) => unwellness(a) - unwellness(b))
  return { ...best, elsewhere }
}

/** Names a rung at one engine. */
export function placeKey({ variant, engine }: RungPlace): string {
  return `${variant} ${engine}`
}

/** The rung without the engines where it failed a request, as `Lost.failed` has them; undefined where none is left. */
export function withoutFailed(rung: RungFacts, failed: ReadonlySet<string>): RungFacts | undefined {
  const { name: variant } = rung
  if (failed.has(variant)) return undefined
  const [best, ...elsewhere] = [rung, ...rung.elsewhere].filter(
    ({ engine }) => !failed.has(placeKey({ variant, engine })),
  )
  return best && { ...best, elsewhere }
}

/** Where a request tries whether the rung works again, while another engine serves it; nowhere at the cost of a load. */
export function trialPlace({ breaker, elsewhere }: RungFacts): RungFacts | undefined {
  if (breaker.state !== 'closed') return undefined
  return elsewhere.find((rung) => rung.breaker.state === 'half_open' && rung.state === 'ready')
}

/** Healthy and there or coming, then to be tried, then waiting for memory, then not serving. */
function unwellness(rung: RungFacts): number {
  const kind = kindOf(rung)
  if (kind === 'out') return 3
  if (rung.breaker.state !== 'closed') return 1
  return kind === 'queue' ? 2 : 0
}
