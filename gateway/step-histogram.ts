import type { Metric, Registry } from 'prom-client'

/** One label set's histogram. Observing costs a short scan and three additions: it is called for every token. */
export class HistogramSeries {
  readonly labels: Record<string, string>
  readonly #bounds: readonly number[]
  /** Observations per bucket, not cumulative; the last one is above every bound. */
  readonly counts: Float64Array
  sum = 0

  constructor(labels: Record<string, string>, bounds: readonly number[]) {
    this.labels = labels
    this.#bounds = bounds
    this.counts = new Float64Array(bounds.length + 1)
  }

  /** Counts `value` `times` times. */
  observe(value: number, times = 1): void {
    let bucket = 0
    while (value > (this.#bounds[bucket] ?? Number.POSITIVE_INFINITY)) bucket++
    this.counts[bucket] = (this.counts[bucket] ?? 0) + times
    this.sum += value * times
  }
}

/** One exported sample, as prom-client formats it. */
interface Sample {
  labels: Record<string, string | number>
  value: number
  metricName: string
}

/** A Prometheus histogram whose label sets are resolved once, not at every observation as prom-client's are. */
export class StepHistogram {
  readonly name: string
  readonly help: string
  readonly #bounds: readonly number[]
  readonly #series = new Map<string, HistogramSeries>()

  constructor(registry: Registry, name: string, help: string, bounds: readonly number[]) {
    this.name = name
    this.help = help
    this.#bounds = bounds
    // The registry only calls `get`, which prom-client's type of a metric does not say.
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion
    registry.registerMetric(this as unknown as Metric)
  }

  /** The series of a label set, made on first use. The caller bounds the number of label sets. */
  series(labels: Record<string, string>): HistogramSeries {
    const key = JSON.stringify(labels)
    const found = this.#series.get(key)
    if (found) return found
    const made = new HistogramSeries(labels, this.#bounds)
    this.#series.set(key, made)
    return made
  }

  /** All samples in prom-client's form; the registry calls it at a scrape. */
  async get(): Promise<{ name: string; help: string; type: 'histogram'; values: Sample[]; aggregator: 'sum' }> {
    const values = [...this.#series.values()].flatMap((series) => this.#samples(series))
    return { name: this.name, help: this.help, type: 'histogram', values, aggregator: 'sum' }
  }

  reset(): void {
    this.#series.clear()
  }

  #samples({ labels, counts, sum }: HistogramSeries): Sample[] {
    const bucket = `${this.name}_bucket`
    let total = 0
    const samples = [...counts].map((count, i): Sample => {
      total += count
      return { labels: { ...labels, le: this.#bounds[i] ?? '+Inf' }, value: total, metricName: bucket }
    })
    samples.push({ labels, value: sum, metricName: `${this.name}_sum` })
    samples.push({ labels, value: total, metricName: `${this.name}_count` })
    return samples
  }
}
