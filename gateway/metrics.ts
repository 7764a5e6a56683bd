import { Counter, Gauge, Registry } from 'prom-client'
import type { DeviceStatus, EngineStatus, PackedFiles, SwapStatus } from '../proto/gen/edgeshift/v1/engine.js'
import { PairCounter } from './pair-counter.js'
import type { DegradeCause } from './request.js'
import { StepHistogram, type HistogramSeries } from './step-histogram.js'

const SECONDS_SHORT = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5]
const SECONDS_LONG = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
const BATCH_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]

/** One variant's request figures, with their labels resolved. */
export interface VariantMetrics {
  timeToFirstToken: HistogramSeries
  interToken: HistogramSeries
  endToEnd: HistogramSeries
  queueTime: HistogramSeries
  /** Tokens since the last scrape. */
  promptTokens: number
  generationTokens: number
}

/** What a scrape reads from the engine. `refresh` brings fresh figures and never rejects. */
export interface EngineFigures {
  refresh(): Promise<void>
  status(): EngineStatus | undefined
}

/** The process's metrics. Labels `model` and `variant` only ever hold configured names. */
export class Metrics {
  readonly registry = new Registry()
  readonly #variants = new Map<string, VariantMetrics>()
  readonly #timeToFirstToken = this.#histogram(
    'time_to_first_token_seconds',
    'From arrival to the first token.',
    SECONDS_LONG,
  )
  readonly #interToken = this.#histogram('inter_token_latency_seconds', 'Between tokens of a sequence.', SECONDS_SHORT)
  readonly #endToEnd = this.#histogram('e2e_request_latency_seconds', 'From arrival to the last event.', SECONDS_LONG)
  readonly #queueTime = this.#histogram('request_queue_time_seconds', "In the engine's queue.", SECONDS_LONG)
  readonly #batchSize = this.#histogram('batch_size', 'Sequences that advanced in one engine step.', BATCH_SIZES)
  readonly #promptTokens = this.#tokenCounter('prompt_tokens_total', 'Prompt tokens submitted.', 'promptTokens')
  readonly #generationTokens = this.#tokenCounter('generation_tokens_total', 'Tokens generated.', 'generationTokens')
  readonly #requests = new PairCounter(
    this.registry,
    'edgeshift_requests_total',
    'Requests by how they ended: ok or an error code.',
    ['model', 'outcome'],
  )
  readonly #restarts = this.#counter('engine_restarts_total', 'Engine processes that ended and were restarted.', [])
  readonly #failovers = this.#counter(
    'failovers_total',
    'Requests in flight that were lost and went on, by what failed.',
    ['cause'],
  )
  readonly #replayedTokens = this.#counter(
    'replayed_tokens_total',
    'Generated tokens that were given to an engine again because their request was lost.',
    [],
  )
  readonly #stepSizes = this.#batchSize.series({})

  constructor(version: string) {
    const info = new Gauge({
      name: 'edgeshift_build_info',
      help: 'Version of the gateway; always 1.',
      labelNames: ['version', 'node'],
      registers: [this.registry],
    })
    info.set({ version, node: process.version }, 1)
    this.#restarts.inc(0)
    this.#replayedTokens.inc(0)
  }

  /** The figures of one variant ("model:rung" of the configuration). */
  variant(model: string, variant: string): VariantMetrics {
    const found = this.#variants.get(variant)
    if (found) return found
    const labels = { model, variant }
    const made: VariantMetrics = {
      timeToFirstToken: this.#timeToFirstToken.series(labels),
      interToken: this.#interToken.series(labels),
      endToEnd: this.#endToEnd.series(labels),
      queueTime: this.#queueTime.series(labels),
      promptTokens: 0,
      generationTokens: 0,
    }
    this.#variants.set(variant, made)
    this.#promptTokens.inc(labels, 0)
    this.#generationTokens.inc(labels, 0)
    return made
  }

  /** Counts a request's end; `model` is a configured id or empty. */
  countRequest(model: string, outcome: string): void {
    this.#requests.inc(model, outcome)
  }

  /** One engine step with the number of sequences that advanced. */
  observeStep(batchSize: number): void {
    this.#stepSizes.observe(batchSize)
  }

  countRestart(): void {
    this.#restarts.inc()
  }

  /** A request in flight goes on elsewhere with `replayedTokens` of its output. */
  countFailover(cause: DegradeCause, replayedTokens: number): void {
    this.#failovers.inc({ cause })
    this.#replayedTokens.inc(replayedTokens)
  }

  /** Requests between arrival and last event, read at every scrape. */
  watchActive(count: () => number): void {
    const gauge = this.#gauge('num_requests_in_flight', 'Requests the gateway holds.', [])
    gauge.set(count())
    this.#collect(gauge, () => gauge.set(count()))
  }

  /** Exports the engine's own figures, asked for at every scrape (once for all of them). */
  watchEngine(engine: EngineFigures): void {
    let refreshing: Promise<void> | undefined
    const refresh = async (): Promise<EngineStatus | undefined> => {
      refreshing ??= engine.refresh().finally(() => {
        refreshing = undefined
      })
      await refreshing
      return engine.status()
    }
    for (const figure of ENGINE_GAUGES) {
      const gauge = this.#gauge(figure.name, figure.help, figure.labels)
      this.#collect(gauge, async () => {
        const status = await refresh()
        gauge.reset()
        if (status) for (const sample of figure.read(status)) gauge.set(sample.labels, sample.value)
      })
    }
  }

  /** Tokens are counted as plain numbers, since that is done for every one, and moved here at a scrape. */
  #tokenCounter(name: string, help: string, field: 'promptTokens' | 'generationTokens'): Counter {
    const counter = this.#counter(name, help, VARIANT_LABELS)
    const collect = (): void => {
      for (const metrics of this.#variants.values()) {
        counter.inc(metrics.timeToFirstToken.labels, metrics[field])
        metrics[field] = 0
      }
    }
    return Object.assign(counter, { collect })
  }

  #collect(gauge: Gauge, collect: () => void | Promise<void>): void {
    Object.assign(gauge, { collect })
  }

  #histogram(name: string, help: string, bounds: readonly number[]): StepHistogram {
    return new StepHistogram(this.registry, `edgeshift_${name}`, help, bounds)
  }

  #counter(name: string, help: string, labelNames: readonly string[]): Counter {
    return new Counter({ name: `edgeshift_${name}`, help, labelNames: [...labelNames], registers: [this.registry] })
  }

  #gauge(name: string, help: string, labelNames: readonly string[]): Gauge {
    return new Gauge({ name: `edgeshift_${name}`, help, labelNames: [...labelNames], registers: [this.registry] })
  }
}

const VARIANT_LABELS = ['model', 'variant']

/** One exported value. */
interface GaugeSample {
  labels: Record<string, string>
  value: number
}

/** A figure of the engine and how it is read from its status. */
interface EngineGauge {
  name: string
  help: string
  labels: readonly string[]
  read(status: EngineStatus): GaugeSample[]
}

const whole = (value: (status: EngineStatus) => number) => (status: EngineStatus) => [
  { labels: {}, value: value(status) },
]

const perDevice = (value: (device: DeviceStatus) => number) => (status: EngineStatus) =>
  status.devices.map((device) => ({ labels: { device: device.id }, value: value(device) }))

/** By device and, where it has a name, event. */
const ofSwap = (read: (swap: SwapStatus) => Record<string, number>) => (status: EngineStatus) =>
  status.devices.flatMap(({ id: device, swap }) =>
    Object.entries(swap ? read(swap) : {}).map(([event, value]) => ({
      labels: event === '' ? { device } : { device, event },
      value,
    })),
  )

const ofPacked = (value: (packed: PackedFiles) => number) => (status: EngineStatus) =>
  status.packed ? [{ labels: {}, value: value(status.packed) }] : []

/** Share of a whole; 0 where there is none. */
function share(part: number, total: number): number {
  return total > 0 ? part / total : 0
}

const DEVICE = ['device']

/** Cumulative engine figures are gauges here: they start again when the engine does. */
const ENGINE_GAUGES: readonly EngineGauge[] = [
  { name: 'num_requests_running', help: 'Sequences that run.', labels: [], read: whole((s) => s.running) },
  { name: 'num_requests_waiting', help: 'Sequences in the queue.', labels: [], read: whole((s) => s.waiting) },
  {
    name: 'kv_cache_usage',
    help: 'Share of the KV memory that sequences hold.',
    labels: DEVICE,
    read: perDevice((d) => share(d.kvUsedBytes, d.kvBytes)),
  },
  {
    name: 'kv_cache_cached',
    help: 'Share of the KV memory that only the prefix cache holds.',
    labels: DEVICE,
    read: perDevice((d) => share(d.kvCachedBytes, d.kvBytes)),
  },
  {
    name: 'prefix_cache_queries',
    help: 'Prompt tokens looked up in the prefix cache.',
    labels: DEVICE,
    read: perDevice((d) => d.prefixQueries),
  },
  {
    name: 'prefix_cache_hits',
    help: 'Prompt tokens found in the prefix cache.',
    labels: DEVICE,
    read: perDevice((d) => d.prefixHits),
  },
  { name: 'preemptions', help: 'Sequences preempted.', labels: DEVICE, read: perDevice((d) => d.preemptions) },
  { name: 'engine_steps', help: 'Steps run.', labels: DEVICE, read: perDevice((d) => d.steps) },
  {
    name: 'engine_step_tokens',
    help: 'Tokens computed, prompts and answers.',
    labels: DEVICE,
    read: perDevice((d) => d.stepTokens),
  },
  {
    name: 'engine_step_sequences',
    help: 'Sequences of all steps together; divided by the steps, the mean batch size.',
    labels: DEVICE,
    read: perDevice((d) => d.stepSequences),
  },
  {
    name: 'engine_step_device_seconds',
    help: 'Time the device spent on steps.',
    labels: DEVICE,
    read: perDevice((d) => d.stepDeviceUs / 1e6),
  },
  {
    name: 'interactive_wait_seconds',
    help: 'The longest that an interactive request waited for a token recently (it fades within half a minute).',
    labels: DEVICE,
    read: perDevice((d) => d.interactiveWaitUs / 1e6),
  },
  {
    name: 'batch_token_budget',
    help: 'Tokens of a step that batch work may have, so that interactive requests stay within their goal.',
    labels: DEVICE,
    read: perDevice((d) => d.batchTokens),
  },
  {
    name: 'memory_budget_bytes',
    help: 'Bytes a device may use.',
    labels: DEVICE,
    read: perDevice((d) => d.budgetBytes),
  },
  {
    name: 'memory_drift_bytes',
    help: "Bytes that the process holds beyond the ledger's weights, workspaces and touched KV memory.",
    labels: DEVICE,
    read: perDevice((d) => d.driftBytes),
  },
  {
    name: 'memory_drift_alarm',
    help: "1 while the drift is above the ledger's overhead: something holds memory that no entry knows.",
    labels: DEVICE,
    read: perDevice((d) => Number(d.driftAlarm)),
  },
  {
    name: 'variant_loads',
    help: "Times a variant was loaded since the engine's start.",
    labels: ['model', 'variant'],
    read: (status) =>
      status.variants.map(({ model, name: variant, loads }) => ({ labels: { model, variant }, value: loads })),
  },
  {
    name: 'swap_used_bytes',
    help: 'Host memory that preempted sequences hold.',
    labels: DEVICE,
    read: ofSwap((swap) => ({ '': swap.usedBytes })),
  },
  {
    name: 'swap_sequences',
    help: 'Preempted sequences: copied out and in, or computed again because that is quicker or there was no room.',
    labels: ['device', 'event'],
    read: ofSwap(({ out, in: back, recomputed, full }) => ({ out, in: back, recomputed, full })),
  },
  { name: 'packed_bytes', help: 'Bytes of the repacked files.', labels: [], read: ofPacked((p) => p.bytes) },
  {
    name: 'packed_budget_bytes',
    help: 'Bytes that repacked files may take.',
    labels: [],
    read: ofPacked((p) => p.budgetBytes),
  },
  {
    name: 'packed_events',
    help: "What became of repacked files since the engine's start.",
    labels: ['event'],
    read: ({ packed }) => Array.from(packed?.events ?? [], ([event, value]) => ({ labels: { event }, value })),
  },
  {
    name: 'variant_load_seconds',
    help: "Time of a variant's last load, by where the matrices came from.",
    labels: ['model', 'variant', 'from'],
    read: ({ variants }) =>
      variants.flatMap(({ model, name: variant, origin: from, loadMs }) =>
        from === '' ? [] : [{ labels: { model, variant, from }, value: loadMs / 1000 }],
      ),
  },
  {
    name: 'memory_bytes',
    help: "Bytes of a device's ledger by kind and owner.",
    labels: ['device', 'kind', 'owner'],
    read: (status) =>
      status.devices.flatMap((device) =>
        device.ledger.map(({ kind, owner, bytes }) => ({ labels: { device: device.id, kind, owner }, value: bytes })),
      ),
  },
]
