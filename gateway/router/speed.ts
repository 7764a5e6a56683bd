/** How fast rungs decode, measured or guessed. Pure; figures are binary logarithms. */
import type { RungFacts } from './facts.js'
import { bytesOf } from './limits.js'

/** Bytes per second, where nothing is measured. */
const USUAL_BANDWIDTH = 33

/** log2 of the bytes per second at which those of the rungs that are measured read their weights, on average. */
export function bandwidthOf(rungs: readonly RungFacts[]): number {
  const measured = rungs.filter(({ tokensPerSecond }) => tokensPerSecond > 0)
  const sum = measured.reduce((total, rung) => total + Math.log2(rung.tokensPerSecond) + sizeOf(rung), 0)
  return measured.length > 0 ? sum / measured.length : USUAL_BANDWIDTH
}

/** log2 of a rung's tokens per second; one that is not measured goes by its size, since decoding reads every weight. */
export function speedOf(rung: RungFacts, bandwidth: number): number {
  return rung.tokensPerSecond > 0 ? Math.log2(rung.tokensPerSecond) : bandwidth - sizeOf(rung)
}

/** log2 of its bytes. */
function sizeOf(rung: RungFacts): number {
  return Math.log2(Math.max(1, bytesOf(rung)))
}
