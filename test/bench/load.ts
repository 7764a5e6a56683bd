/**
 * Loading: speed beside reading the same file from the page cache, and peak memory beside the weights, of the embedded
 * model, of one of its shape in plain floats, and of one of 1 GB. `npm run bench:load` (needs 1.6 GB in the temporary
 * folder). Every figure is the best of several rounds, loads and reads in turns. Wall-clock shares count on a quiet
 * machine; shares by processor time (a load's threads taken as one each, the read has one) also where others compute.
 */
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, ModelSpec, Precision } from '../../engine/native.js'
import { type LoadCost, measureLoad, measureRead, writePlainModel } from '../support/load-cost.js'
import { cpuDevice, smollm2Request } from '../support/native-model.js'

const ROUNDS = 5
const THREADS = availableParallelism()
const scratch = mkdtempSync(join(tmpdir(), 'edgeshift-load-'))
const device = loadAddon().openDevice({ ...cpuDevice, threads: THREADS, kvArenaBytes: 1 << 20 })

type Times = Pick<LoadCost, 'milliseconds' | 'processorMilliseconds'>

const wall = (times: readonly Times[]): number => Math.min(...times.map(({ milliseconds }) => milliseconds))
const processor = (times: readonly Times[]): number =>
  Math.min(...times.map(({ processorMilliseconds }) => processorMilliseconds))
const percent = (share: number): string => `${(share * 100).toFixed(0)}%`
const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0)

async function report(name: string, request: LoadRequest): Promise<void> {
  const [path = ''] = request.files
  const { size } = statSync(path)
  measureRead(path, false)
  const reads: Times[] = []
  const fresh: Times[] = []
  const loads: Times[] = []
  let peak = 0
  let weights = 0
  for (let round = 0; round < ROUNDS; round++) {
    reads.push(measureRead(path, false))
    fresh.push(measureRead(path, true))
    // oxlint-disable-next-line no-await-in-loop -- in turn with the reads
    const cost = await measureLoad(device, request)
    loads.push(cost)
    peak = Math.max(peak, cost.peakBytes - cost.workspaceBytes)
    weights = cost.weightBytes
  }
  const speed = (milliseconds: number): string => `${(size / 1e6 / milliseconds).toFixed(2)} GB/s`
  const shares = (times: readonly Times[]): string =>
    `${percent(wall(times) / wall(loads))}, by processor time ${percent((processor(times) * THREADS) / processor(loads))}`
  console.log(
    `${name}: ${speed(wall(loads))} loaded; read ${speed(wall(reads))} (${shares(reads)}), into new memory ` +
      `${speed(wall(fresh))} (${shares(fresh)}); peak ${mib(peak)} MiB for ${mib(weights)} MiB of weights ` +
      `(at most ${mib(weights * 1.1 + 2 ** 28)})`,
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
