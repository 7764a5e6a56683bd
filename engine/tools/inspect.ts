/** What `edgeshift inspect` says of a model. Reads headers only. */
import { statSync } from 'node:fs'
import type { Config } from '../config/index.js'
import type { Precision } from '../native.js'
import {
  describeStorage,
  elementsOf,
  estimateWeightBytes,
  type KnownHash,
  type MeasuredQuality,
  modelAssets,
  type ModelCard,
  storageMethod,
  storedBytes,
} from '../registry/index.js'
import { kvDtypeOf } from '../residency/catalog.js'
import { estimateWorkspaceBytes, kvBlockBytes } from '../residency/estimate.js'
import { doesNotFit } from '../residency/plan.js'
import { type DeviceBudget, emptyDevice } from '../residency/state.js'

const LADDER: readonly Precision[] = ['fp16', 'int8', 'int4']

/** Weights of one kind that are stored alike. */
export interface StorageGroup {
  /** "q", "down", "embed": the slot without its layer. */
  module: string
  storage: string
  /** How many, and the layers they are in ("0-29"); empty outside layers. */
  count: number
  layers: string
  parameters: number
  bytes: number
}

/** One rung that the files can serve. */
export interface RungReport {
  precision: Precision
  /** stored: as the files are; derived: quantized at load; dequantized: wider than stored, no better. */
  origin: 'stored' | 'derived' | 'dequantized'
  weightBytes: number
  /** As measured; absent where nobody has. */
  quality?: MeasuredQuality
  /** As NativeModel.roundingError; absent where it was not asked for. */
  roundingError?: number
  /** Device id -> "fits" or why not; of the devices of a configuration. */
  devices: Record<string, string>
}

/** Everything `inspect` prints; the JSON form is this object. */
export interface Inspection {
  path: string
  name: string
  format: string
  architecture: string
  licence: string | undefined
  parameters: number
  contextLength: number
  layers: number
  /** `hashes`: what the hub said of the file when it was downloaded, and what `verify --record` wrote down. */
  files: { file: string; bytes: number; hashes: KnownHash[] }[]
  storage: StorageGroup[]
  chatTemplate: boolean
  kvBytesPerToken: number
  rungs: RungReport[]
  /** What is served differently from how it is stored. */
  notices: string[]
  problems: string[]
}

/** Where rungs are tried: the devices of a configuration and its scheduler's settings. */
export interface InspectTarget {
  devices: DeviceBudget[]
  scheduler: Config['scheduler']
}

/** Describes a card. Throws nothing of its own: what is wrong is in `problems`. */
export function inspectCard(card: ModelCard, { devices, scheduler }: InspectTarget): Inspection {
  const text = faultOf(() => modelAssets(card))
  const assets = text.value ?? []
  return {
    path: card.path,
    name: card.name,
    format: storageMethod(card),
    architecture: card.architecture,
    licence: card.licence,
    parameters: card.parameters,
    contextLength: card.contextLength,
    layers: card.spec.numLayers,
    files: card.files.map((file, index) => ({ file, bytes: statSync(file).size, hashes: card.hashes[index] ?? [] })),
    storage: groupStorage(card),
    chatTemplate: assets.some(({ name }) => name === 'chat_template.jinja'),
    kvBytesPerToken: blockBytesOf(card, scheduler) / scheduler.block_size,
    rungs: LADDER.map((precision) => rungReport(card, precision, devices, scheduler)),
    notices: card.notices,
    problems: [text.fault].filter((problem) => problem !== undefined),
  }
}

function blockBytesOf({ spec }: ModelCard, { block_size, kv_cache_dtype }: Config['scheduler']): number {
  return kvBlockBytes(spec, block_size, 'cpu', kvDtypeOf(kv_cache_dtype))
}

/** Has the quantized rungs loaded, one after the other, and writes down what rounding takes; or why a load fails. */
export async function measureRounding(
  report: Inspection,
  roundingErrorOf: (precision: Precision) => Promise<number>,
): Promise<void> {
  for (const rung of report.rungs) {
    if (rung.precision === 'fp16') continue
    try {
      // oxlint-disable-next-line no-await-in-loop -- one in memory at a time
      rung.roundingError = await roundingErrorOf(rung.precision)
    } catch (error) {
      report.problems.push(`${rung.precision}: ${error instanceof Error ? error.message : String(error)}`)
    }
  }
}

function faultOf<T>(run: () => T): { value?: T; fault?: string } {
  try {
    return { value: run() }
  } catch (error) {
    return { fault: error instanceof Error ? error.message : String(error) }
  }
}

function rungReport(
  card: ModelCard,
  precision: Precision,
  devices: readonly DeviceBudget[],
  scheduler: Config['scheduler'],
): RungReport {
  const rank = LADDER.indexOf(precision) - LADDER.indexOf(card.precision)
  const origin = rank === 0 ? 'stored' : rank > 0 ? 'derived' : 'dequantized'
  const weightBytes = estimateWeightBytes(card, precision)
  const blockBytes = blockBytesOf(card, scheduler)
  const sequenceKvBytes = Math.ceil(card.contextLength / scheduler.block_size) * blockBytes
  const limits = { maxBatchTokens: scheduler.max_num_batched_tokens, maxSlots: scheduler.max_num_seqs }
  const workspaceBytes = estimateWorkspaceBytes(card.spec, limits, precision)
  const placed = devices.map((device): [string, string] => {
    const sizes = { weightBytes, workspaceBytes, sequenceKvBytes, blockBytes }
    return [
      device.id,
      doesNotFit(emptyDevice(device, blockBytes), { name: 'rung', devices: [device.id], ...sizes, ordered: true }) ??
        'fits',
    ]
  })
  const quality = card.quality[precision]
  return { precision, origin, weightBytes, ...(quality && { quality }), devices: Object.fromEntries(placed) }
}

function groupStorage({ weights }: ModelCard): StorageGroup[] {
  const groups = new Map<string, { group: StorageGroup; layers: number[] }>()
  for (const weight of weights) {
    const cut = weight.slot.lastIndexOf('.') + 1
    const module = weight.slot.slice(cut)
    const storage = describeStorage(weight)
    const key = `${module} ${storage}`
    const entry = groups.get(key) ?? {
      group: { module, storage, count: 0, layers: '', parameters: 0, bytes: 0 },
      layers: [],
    }
    const { group, layers } = entry
    group.count++
    group.parameters += elementsOf(weight)
    group.bytes += storedBytes(weight)
    if (cut > 0) layers.push(Number(weight.slot.split('.')[1]))
    group.layers = ranges(layers)
    groups.set(key, entry)
  }
  return Array.from(groups.values(), ({ group }) => group)
}

/** "0-3, 5" of ascending numbers. */
function ranges(numbers: readonly number[]): string {
  const parts: [number, number][] = []
  for (const number of numbers) {
    const last = parts.at(-1)
    if (last && last[1] === number - 1) last[1] = number
    else parts.push([number, number])
  }
  return parts.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(', ')
}
