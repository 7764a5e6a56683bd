import { LRUCache } from 'lru-cache'

const REMEMBERED_TENANTS = 4096

/**
 * Tokens served by tenant: the one served least goes first (virtual token counters, Sheng et al., OSDI 2024).
 * A tenant that comes back after idling starts level with the least served active one, so that idle time
 * earns no credit.
 */
export class FairShare {
  private readonly active = new Map<string, { served: number; sequences: number }>()
  private readonly idle = new LRUCache<string, number>({ max: REMEMBERED_TENANTS })
  private floor = 0

  /** A sequence of the tenant entered the engine. */
  enter(tenant: string): void {
    const known = this.active.get(tenant)
    if (known) {
      known.sequences++
      return
    }
    const served = Math.max(this.idle.get(tenant) ?? 0, this.leastServed())
    this.idle.delete(tenant)
    this.active.set(tenant, { served, sequences: 1 })
  }

  /** A sequence of the tenant ended. */
  leave(tenant: string): void {
    const known = this.active.get(tenant)
    if (!known || --known.sequences > 0) return
    this.floor = this.leastServed()
    this.active.delete(tenant)
    this.idle.set(tenant, known.served)
  }

  /** `tokens` are divided by the tenant's weight. */
  charge(tenant: string, tokens: number): void {
    const known = this.active.get(tenant)
    if (known) known.served += tokens
  }

  served(tenant: string): number {
    return this.active.get(tenant)?.served ?? 0
  }

  /** Of active tenants; with none active, what it was when the last one left. */
  private leastServed(): number {
    let least = Infinity
    for (const { served } of this.active.values()) least = Math.min(least, served)
    return least === Infinity ? this.floor : least
  }
}
