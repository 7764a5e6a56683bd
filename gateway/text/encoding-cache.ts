import { LRUCache } from 'lru-cache'

/** Bytes that one model's cache holds. */
const MAX_BYTES = 8 * 2 ** 20
/** Of one entry: a single text must not empty the cache. */
const MAX_ENTRY_BYTES = 2 ** 20
const BYTES_PER_UNIT = 2
const BYTES_PER_ID = 8
/** Of an entry beside its key and ids, about. */
const ENTRY_BYTES = 256

/**
 * Ids of texts that were encoded before, least recently used dropped first. A tenant finds its own texts only: how fast
 * an answer comes must not tell one client what another has sent.
 */
export class EncodingCache {
  readonly #ids = new LRUCache<string, readonly number[]>({
    maxSize: MAX_BYTES,
    maxEntrySize: MAX_ENTRY_BYTES,
    sizeCalculation: (ids, key) => ENTRY_BYTES + key.length * BYTES_PER_UNIT + ids.length * BYTES_PER_ID,
  })

  /** What a text is known by; `kind` keeps texts apart that are not encoded in the same way. */
  static key(tenant: string, kind: 'chat' | 'text', text: string): string {
    return `${tenant}\n${kind}\n${text}`
  }

  get(key: string): readonly number[] | undefined {
    return this.#ids.get(key)
  }

  set(key: string, ids: readonly number[]): void {
    this.#ids.set(key, ids)
  }
}
