import { LRUCache } from 'lru-cache'

/** Entries have no limit of their own: who goes is the planner's decision. */
const UNBOUNDED = Number.MAX_SAFE_INTEGER

/**
 * The variants on one device by last use, each with its bytes. The order and the sum are lru-cache's; its own eviction
 * is never reached, because a busy or pinned variant must not go however old and large it is.
 */
export class ResidencyOrder<T extends { readonly bytes: number }> {
  private readonly cache = new LRUCache<string, T>({ maxSize: UNBOUNDED, sizeCalculation: ({ bytes }) => bytes })

  /** Bytes of all of them. */
  get bytes(): number {
    return this.cache.calculatedSize
  }

  get(name: string): T | undefined {
    return this.cache.peek(name)
  }

  /** Adds a variant, or corrects its bytes, as the one used last. */
  set(name: string, resident: T): void {
    this.cache.delete(name)
    this.cache.set(name, resident)
  }

  delete(name: string): void {
    this.cache.delete(name)
  }

  /** It was used just now. */
  touch(name: string): void {
    this.cache.get(name)
  }

  /** Least recently used first. */
  oldestFirst(): T[] {
    return [...this.cache.rvalues()].filter((resident) => resident !== undefined)
  }
}
