/** Measures a model on a device through the addon: load, prefill, decode at several batch sizes. */
import type { DeviceOptions, LoadRequest, NativeAddon, NativeModel, StepBatch, StepResult } from '../native.js'
import { KV_UNIT_BYTES } from '../native.js'
import type { ModelCard } from '../registry/index.js'
import { kvBlockBytes } from '../residency/estimate.js'

const BLOCK_SIZE = 16
/** Steps that are given to the device before the first is read, as the engine does. */
const IN_FLIGHT = 2
/** Longest piece of a prompt in one step. */
const MAX_CHUNK = 2048

/** What to measure. */
export interface BenchPlan {
  device: { kind: 'cpu' | 'cuda'; index: number; threads: number }
  batches: readonly number[]
  prompts: readonly number[]
  /** Tokens in the cache before the first decode step. */
  context: number
  /** Decode steps of a run. */
  steps: number
  /** Runs, after one to warm up. */
  repeat: number
}

/** One figure: the median of its runs, and their spread. Rates are tokens per second. */
export interface BenchRow {
  /** native: steps straight into the addon, without gateway and engine. stack: a stream over HTTP through both. */
  through: 'native' | 'stack'
  phase: 'load' | 'prefill' | 'decode' | 'first token'
  batch: number
  tokens: number
  rate: number
  low: number
  high: number
  milliseconds: number
  /** Bytes of weights and cache that a decode step reads, of a load those resident; 0 where that says nothing. */
  bytes: number
  /** Share of the read bandwidth that a decode step reaches with them; 0 where that says nothing. */
  share: number
}

/** What a run found besides its rows: bytes per second that the device reads, and what the model takes on it. */
export interface BenchDevice {
  readBandwidth: number
  weightBytes: number
  workspaceBytes: number
}

/** The row of runs that each produced `tokens` in so many milliseconds. */
export function rowOf(
  row: Pick<BenchRow, 'through' | 'phase' | 'batch' | 'tokens'>,
  runs: readonly number[],
): BenchRow {
  const sorted = runs.toSorted((a, b) => a - b)
  const at = (share: number): number => sorted[Math.floor((sorted.length - 1) * share)] ?? Number.NaN
  const rate = (milliseconds: number): number => (row.tokens / milliseconds) * 1000
  return { ...row, rate: rate(at(0.5)), low: rate(at(1)), high: rate(at(0)), milliseconds: at(0.5), bytes: 0, share: 0 }
}

/** A row of decode steps that read `bytes` each, with the share of the bandwidth that they reach. */
export function withShare(row: BenchRow, bytes: number, readBandwidth: number): BenchRow {
  return { ...row, bytes, share: bytes / (row.milliseconds / 1000) / readBandwidth }
}

const prefixSums = (count: number, each: number): Int32Array =>
  Int32Array.from({ length: count + 1 }, (_, i) => i * each)

/** A model on a device, driven as the engine drives it. */
class Driver {
  constructor(
    private readonly model: NativeModel,
    private readonly plan: BenchPlan,
    private readonly card: ModelCard,
    private readonly readBandwidth: number,
  ) {}

  async prefill(tokens: number, chunk: number): Promise<BenchRow> {
    const runs = await this.runs(async () => {
      this.start(0)
      const pending: Promise<StepResult>[] = []
      for (let first = 0; first < tokens; first += chunk) {
        const count = Math.min(chunk, tokens - first)
        pending.push(this.model.step(this.batch(1, count, first, first + count === tokens)))
      }
      await Promise.all(pending)
    })
    return rowOf({ through: 'native', phase: 'prefill', batch: 1, tokens }, runs)
  }

  async decode(batch: number): Promise<BenchRow> {
    const { context, steps } = this.plan
    const runs = await this.runs(async () => {
      for (let slot = 0; slot < batch; slot++) this.start(slot)
      const pending: Promise<StepResult>[] = []
      for (let step = 0; step < steps; step++) {
        pending.push(this.model.step(this.batch(batch, 1, context + step, true)))
        // oxlint-disable-next-line no-await-in-loop -- no more than the engine has under way
        if (pending.length >= IN_FLIGHT) await pending.shift()
      }
      await Promise.all(pending)
    })
    const row = rowOf({ through: 'native', phase: 'decode', batch, tokens: batch * steps }, runs)
    const step = { ...row, milliseconds: row.milliseconds / steps }
    return withShare(step, this.bytesOf(batch), this.readBandwidth)
  }

  /** The head and the layers once, and the cache of every sequence in the middle of a run. */
  private bytesOf(batch: number): number {
    const { vocabSize, hiddenSize } = this.card.spec
    const embedding = this.card.weights.some(({ slot }) => slot === 'head') ? vocabSize * hiddenSize * 2 : 0
    const cached = batch * (this.plan.context + this.plan.steps / 2)
    return this.model.weightBytes - embedding + (cached / BLOCK_SIZE) * this.model.blockBytes
  }

  private async runs(run: () => Promise<void>): Promise<number[]> {
    const times: number[] = []
    for (let i = 0; i <= this.plan.repeat; i++) {
      const start = performance.now()
      // oxlint-disable-next-line no-await-in-loop -- one run after the other
      await run()
      if (i > 0) times.push(performance.now() - start)
    }
    return times
  }

  private start(slot: number): void {
    const none = new Int32Array()
    const tokens = Int32Array.of(1)
    const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0 }
    const penalties = { repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0 }
    const lists = { biasTokens: none, biasValues: new Float32Array(), stopTokens: none, minTokens: 0 }
    this.model.setSlot(slot, { ...sampling, ...penalties, ...lists, tokens, promptLength: 1, ropes: [] })
  }

  /** `count` tokens from `first` on of sequences in slots 0, 1, ..., each with blocks of its own. */
  private batch(sequences: number, count: number, first: number, sample: boolean): StepBatch {
    const room = Math.ceil((this.plan.context + this.plan.steps) / BLOCK_SIZE)
    const used = Math.ceil((first + count) / BLOCK_SIZE)
    const units = this.model.blockBytes / KV_UNIT_BYTES
    const rows = sample ? sequences : 0
    return {
      tokens: Int32Array.from({ length: sequences * count }, (_, i) =>
        count === 1 ? -1 : i % this.card.spec.vocabSize,
      ),
      seqStarts: prefixSums(sequences, count),
      firstPositions: new Int32Array(sequences).fill(first),
      slots: Int32Array.from({ length: sequences }, (_, i) => i),
      blockStarts: prefixSums(sequences, used),
      blocks: Uint32Array.from(
        { length: sequences * used },
        (_, i) => (Math.floor(i / used) * room + (i % used)) * units,
      ),
      rowTokens: Int32Array.from({ length: rows }, (_, i) => (i + 1) * count - 1),
      rowSeqs: Int32Array.from({ length: rows }, (_, i) => i),
      rowTargets: new Int32Array(rows).fill(-1),
      rowTop: new Int32Array(rows).fill(-1),
      rowMasks: new Int32Array(rows).fill(-1),
    }
  }
}

/** Bytes of the KV arena that a plan needs, heads as large as the device keeps them. */
function arenaBytes({ spec }: ModelCard, plan: BenchPlan): number {
  const block = kvBlockBytes(spec, BLOCK_SIZE, plan.device.kind)
  const blocks = (tokens: number): number => Math.ceil(tokens / BLOCK_SIZE)
  const decode = Math.max(1, ...plan.batches) * blocks(plan.context + plan.steps)
  return block * Math.max(decode, ...plan.prompts.map(blocks))
}

/** Measures the device, loads the model and measures everything in the plan; the rows as they come go to `report`. */
export async function benchModel(
  addon: NativeAddon,
  card: ModelCard,
  precision: LoadRequest['precision'],
  plan: BenchPlan,
  report: (row: BenchRow) => void,
): Promise<BenchDevice> {
  const options: DeviceOptions = { ...plan.device, kvArenaBytes: arenaBytes(card, plan) }
  const device = addon.openDevice(options)
  const readBandwidth = await device.readBandwidth()
  const maxBatchTokens = Math.max(512, ...plan.batches, Math.min(MAX_CHUNK, Math.max(0, ...plan.prompts)))
  const { spec, files, weights } = card
  const maxSlots = Math.max(1, ...plan.batches)
  const start = performance.now()
  const model = await device.loadModel({
    spec,
    files,
    weights,
    precision,
    maxSlots,
    maxBatchTokens,
    blockSize: BLOCK_SIZE,
  })
  const row = rowOf({ through: 'native', phase: 'load', batch: 0, tokens: 0 }, [performance.now() - start])
  report({ ...row, bytes: model.weightBytes })
  const driver = new Driver(model, plan, card, readBandwidth)
  // oxlint-disable no-await-in-loop -- figures are measured one after the other
  for (const prompt of plan.prompts) report(await driver.prefill(prompt, maxBatchTokens))
  for (const batch of plan.batches) report(await driver.decode(batch))
  // oxlint-enable no-await-in-loop
  const { weightBytes, workspaceBytes } = model
  await model.unload()
  await device.close()
  return { readBandwidth, weightBytes, workspaceBytes }
}
