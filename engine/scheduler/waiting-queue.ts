import type { FairShare } from './fair-share.js'
import { isBatch } from './governor.js'
import { compareSequences, type Sequence } from './sequence.js'

/** Sequences of one variant that wait for a slot and blocks, ordered by priority, served tokens of the tenant, arrival. */
export class WaitingQueue {
  private readonly tenants = new Map<string, Sequence[]>()
  private count = 0
  private batchCount = 0

  constructor(private readonly share: FairShare) {}

  get size(): number {
    return this.count
  }

  /** Of these, those of batch work. */
  get batchSize(): number {
    return this.batchCount
  }

  push(sequence: Sequence): void {
    const { tenant } = sequence.submit
    const line = this.tenants.get(tenant) ?? []
    if (line.length === 0) this.tenants.set(tenant, line)
    let at = line.length
    for (let before = line[at - 1]; before && compareSequences(before, sequence) > 0; before = line[at - 1]) at--
    line.splice(at, 0, sequence)
    this.count++
    if (isBatch(sequence)) this.batchCount++
  }

  remove(sequence: Sequence): void {
    const { tenant } = sequence.submit
    const line = this.tenants.get(tenant)
    const at = line?.indexOf(sequence) ?? -1
    if (!line || at < 0) return
    line.splice(at, 1)
    this.count--
    if (isBatch(sequence)) this.batchCount--
    if (line.length === 0) this.tenants.delete(tenant)
  }

  /** The sequence to admit next, of batch work alone if so asked, left in the queue; held ones are passed over. */
  peek(batch = false): Sequence | undefined {
    let best: Sequence | undefined
    for (const line of this.tenants.values()) {
      const head = line.find((s) => s.heldSince === undefined && (!batch || isBatch(s)))
      if (head && (!best || this.compare(head, best) < 0)) best = head
    }
    return best
  }

  /** Those that are more urgent than a priority and may run. */
  above(priority: number): Sequence[] {
    return [...this].filter((s) => s.submit.priority < priority && s.heldSince === undefined)
  }

  /** Waiting sequences of a tenant. */
  sizeOf(tenant: string): number {
    return this.tenants.get(tenant)?.length ?? 0
  }

  *[Symbol.iterator](): Iterator<Sequence> {
    for (const line of this.tenants.values()) yield* line
  }

  private compare(a: Sequence, b: Sequence): number {
    return (
      a.submit.priority - b.submit.priority ||
      this.share.served(a.submit.tenant) - this.share.served(b.submit.tenant) ||
      a.arrival - b.arrival
    )
  }
}
