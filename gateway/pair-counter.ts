import { Counter, type Registry } from 'prom-client'

/**
 * A Prometheus counter of two labels. Counting costs two look-ups, not prom-client's check and hash of the labels: it is
 * done for every request; the figures move to prom-client at a scrape. The caller bounds the number of label values.
 */
export class PairCounter {
  readonly #counts = new Map<string, Map<string, number>>()

  constructor(registry: Registry, name: string, help: string, labelNames: readonly [string, string]) {
    const [first, second] = labelNames
    const counter = new Counter({ name, help, labelNames: [first, second], registers: [registry] })
    const collect = (): void => {
      for (const [outer, inner] of this.#counts) {
        for (const [value, count] of inner) counter.inc({ [first]: outer, [second]: value }, count)
        inner.clear()
      }
    }
    Object.assign(counter, { collect })
  }

  /** Counts one more with these values of the two labels. */
  inc(first: string, second: string): void {
    let inner = this.#counts.get(first)
    if (inner === undefined) this.#counts.set(first, (inner = new Map()))
    inner.set(second, (inner.get(second) ?? 0) + 1)
  }
}
