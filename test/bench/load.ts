/**
 * Loading: speed beside reading the same file from the page cache and from the disk, beside filling memory of the
 * weights' size, and peak memory beside the weights; of the embedded model, of one of its shape in plain floats, and of
 * one of 1 GB. `npm run bench:load` (needs 1.6 GB in the temporary folder; a word of the name as argument takes those
 * models only). Every figure is the median of several rounds, loads and what they are compared with in turns; shares are
 * of one round each. Wall-clock shares count on a quiet machine; shares by processor time (a load's threads taken as one
 * each, the others have one) also where others compute.
 */
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, ModelSpec, Precision } from '../../engine/native.js'
import {
  dropFromPageCache,
  type LoadCost,
  measureFill,
  measureLoad,
  measureRead,
  type Times,
  writePlainModel,
} from '../support/load-cost.js'
import { cpuDevice, smollm2Request } from '../support/native-model.js'

const ROUNDS = 5
const THREADS = availableParallelism()
const scratch = mkdtempSync(join(tmpdir(), 'edgeshift-load-'))
const device = loadAddon().openDevice({ ...cpuDevice, threads: THREADS, kvArenaBytes: 1 << 20 })

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) / 2)] ?? Number.NaN
const percent = (share: number): string => `${(share * 100).toFixed(0)}%`
const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0)

/** What one turn took: a load and all that it is compared with. */
interface Turn {
  load: LoadCost
  read: Times
  fresh: Times
  fill: Times
  /** Absent where the page cache could not be emptied of the file. */
  cold: { load: LoadCost; read: Times } | undefined
}

async function takeTurn(path: string, request: LoadRequest): Promise<Turn> {
  const read = measureRead(path, false)
  const fresh = measureRead(path, true)
  const load = await measureLoad(device, request)
  const fill = measureFill(load.weightBytes)
  if (!dropFromPageCache(path)) return { load, read, fresh, fill, cold: undefined }
  const coldRead = measureRead(path, false)
  if (!dropFromPageCache(path)) return { load, read, fresh, fill, cold: undefined }
  const coldLoad = await measureLoad(device, request)
  return { load, read, fresh, fill, cold: { load: coldLoad, read: coldRead } }
}

async function report(name: string, request: LoadRequest): Promise<void> {
  if (!name.includes(process.argv[2] ?? '')) return
  const [path = ''] = request.files
  const { size } = statSync(path)
  measureRead(path, false)
  const turns: Turn[] = []
  for (let round = 0; round < ROUNDS; round++) {
    // oxlint-disable-next-line no-await-in-loop -- in turn
    turns.push(await takeTurn(path, request))
  }
  const of = (pick: (turn: Turn) => number): number => median(turns.map(pick))
  const speed = (pick: (turn: Turn) => number): string => `${(size / 1e6 / of(pick)).toFixed(2)} GB/s`
  const share = (what: 'read' | 'fresh' | 'fill'): string => {
    const processor = (turn: Turn): number =>
      (turn[what].processorMilliseconds * THREADS) / turn.load.processorMilliseconds
    const wall = of((turn) => turn[what].milliseconds / turn.load.milliseconds)
    return `${percent(wall)} (by processor time ${percent(of(processor))})`
  }
  const colds = turns.flatMap(({ cold }) => cold ?? [])
  const cold = `${percent(median(colds.map(({ load, read }) => read.milliseconds / load.milliseconds)))} of a cold read`
  const peak = Math.max(...turns.map(({ load }) => load.peakBytes - load.workspaceBytes))
  const weights = turns[0]?.load.weightBytes ?? 0
  console.log(
    `${name}: ${speed(({ load }) => load.milliseconds)}, ${share('read')} of reading into one buffer ` +
      `(${speed(({ read }) => read.milliseconds)}), ${share('fresh')} into new memory, ` +
      `${share('fill')} of filling the weights' memory; ` +
      `${colds.length > 0 ? `from the disk ${(size / 1e6 / median(colds.map(({ load }) => load.milliseconds))).toFixed(2)} GB/s, ${cold}` : 'the page cache could not be emptied'}; ` +
      `peak ${mib(peak)} MiB for ${mib(weights)} MiB of weights (at most ${mib(weights * 1.1 + 2 ** 28)})`,
  )
}

async function reportPlain(
  name: string,
  type: 'f16' | 'bf16' | 'f32',
  rungs: Precision[],
  spec: ModelSpec,
): Promise<void> {
  const path = join(scratch, name)
  const request = writePlainModel(path, type, spec)
  // oxlint-disable-next-line no-await-in-loop -- one at a time
  for (const precision of rungs) await report(`${name} at ${precision}`, { ...request, precision })
  rmSync(path)
}

/** 516 million weights. */
function largeSpec(spec: ModelSpec): ModelSpec {
  const layers = 10
  const sizes = { vocabSize: 32_000, hiddenSize: 2048, numLayers: layers, numHeads: 32, numKvHeads: 8, headDim: 64 }
  const perLayer = { layerRopes: new Int32Array(layers), windows: new Int32Array(layers) }
  return { ...spec, ...sizes, ...perLayer, intermediateSize: 5632 }
}

try {
  const { spec } = smollm2Request('fp16')
  for (const precision of ['fp16', 'int8', 'int4'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    await report(`q4_1 at ${precision}`, smollm2Request(precision, 16))
  }
  await reportPlain('f16', 'f16', ['fp16', 'int8', 'int4'], spec)
  await reportPlain('bf16', 'bf16', ['fp16'], spec)
  await reportPlain('f32', 'f32', ['fp16'], spec)
  await reportPlain('1 GB of f16', 'f16', ['fp16', 'int8', 'int4'], largeSpec(spec))
} finally {
  rmSync(scratch, { recursive: true })
  await device.close()
}
