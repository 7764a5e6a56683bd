/** Many clients of several variants at once, and how long they waited. */
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import type { InProcessEngine } from './engine-in-process.js'

/** What became of a run; waits are from submit to first schedule, milliseconds, loads included. */
export interface MixedReport {
  requests: number
  /** Requests by how they ended. */
  ends: Record<string, number>
  served: Record<string, number>
  longestWaitMs: number
  p99WaitMs: number
  loads: number
  /** Fewest requests that one client got an end for. */
  fewest: number
}

/** `clients` ask one after the other, each for any of the variants, for `milliseconds`; one in 16 cancels or hurries. */
export async function runMixed(
  box: InProcessEngine,
  variants: readonly string[],
  clients: number,
  milliseconds: number,
): Promise<MixedReport> {
  const until = performance.now() + milliseconds
  const waits: number[] = []
  const ends: Record<string, number> = {}
  const served: Record<string, number> = {}
  const counts = Array.from({ length: clients }, () => 0)
  const client = async (index: number): Promise<void> => {
    for (let turn = 0; performance.now() < until; turn++) {
      const kind = (index * 31 + turn * 17) % 16
      const name = variants[(index + turn) % variants.length] ?? ''
      const overrides = {
        maxTokens: 1 + ((index + turn * 7) % 16),
        tenant: `t${index % 5}`,
        priority: kind % 3 === 0 ? 1 : 0,
        ...(kind === 0 && { deadlineMs: 50 }),
      }
      const { end, waitedMs } = await box.ask(name, [1 + (index % 9), 2, 3 + (turn % 9)], overrides)
      // One that cannot be met is refused before it passes.
      const late = end.error?.code === 'deadline_exceeded'
      const reason = late ? 'DEADLINE' : (FinishReason[end.finishReason] ?? '')
      ends[reason] = (ends[reason] ?? 0) + 1
      counts[index] = (counts[index] ?? 0) + 1
      if (waitedMs === undefined) continue
      waits.push(waitedMs)
      served[name] = (served[name] ?? 0) + 1
    }
  }
  await Promise.all(counts.map((_, index) => client(index)))
  waits.sort((a, b) => a - b)
  return {
    requests: counts.reduce((total, count) => total + count, 0),
    ends,
    served,
    longestWaitMs: Math.round(waits.at(-1) ?? 0),
    p99WaitMs: Math.round(waits[Math.floor(waits.length * 0.99)] ?? 0),
    loads: variants.reduce((total, name) => total + box.variant(name).loads, 0),
    fewest: Math.min(...counts),
  }
}
