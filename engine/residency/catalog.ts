import type { Config, DeviceConfig, ModelConfig } from '../config/index.js'
import type { GgufFile, KvCacheDtype, LoadRequest, Precision, SlotState } from '../native.js'
import type { SchedulerLimits } from '../scheduler/limits.js'
import {
  estimateWeightBytes,
  type MeasuredQuality,
  type ModelCard,
  promptRopes,
  readModelCard,
  ropeLimit,
} from '../registry/index.js'
import { estimateWorkspaceBytes, kvBlockBytes } from './estimate.js'
import type { VariantDemand } from './state.js'
import { readRungs, type Rung } from './rungs.js'

/** A rung whose file is understood: what it needs and how to load it. */
export interface KnownVariant {
  name: string
  model: string
  precision: Precision
  vocabSize: number
  maxModelLen: number
  blockBytes: number
  quality?: MeasuredQuality | undefined
  /** Never to be unloaded to make room. */
  pinned: boolean
  /** Milliseconds without a request after which it is unloaded. */
  keepAliveMs: number
  limits: SchedulerLimits
  demand: VariantDemand
  request: LoadRequest
  /** The tables for a prompt of that many tokens; empty = the model's. */
  promptRopes: (promptLength: number) => SlotState['ropes']
}

/** A rung whose file cannot be served. */
export interface BrokenVariant {
  name: string
  model: string
  precision: Precision
  error: string
}

/** Every rung of the configuration in ladder order, and a card of each model for its text assets. */
export interface Catalog {
  rungs: Rung[]
  known: KnownVariant[]
  broken: BrokenVariant[]
  cards: Map<string, ModelCard>
}

/** Reads the files' headers; no weight is touched. A file is read once, however many rungs come from it. */
export function readCatalog(config: Config, readGguf: (path: string) => GgufFile): Catalog {
  const catalog: Catalog = { rungs: [], known: [], broken: [], cards: new Map() }
  const files = new Map<string, ModelCard | Error>()
  const cardOf = (path: string): ModelCard | Error => {
    const card = files.get(path) ?? attempt(() => readModelCard(path, readGguf))
    files.set(path, card)
    return card
  }
  for (const model of config.models) {
    for (const rung of readRungs(model, cardOf)) {
      catalog.rungs.push(rung)
      if (!(rung.card instanceof Error) && !catalog.cards.has(model.id)) catalog.cards.set(model.id, rung.card)
      const known = rung.card instanceof Error ? rung.card : describe(model, rung, rung.card, config)
      if (known instanceof Error) {
        catalog.broken.push({ ...rung, error: known.message })
        continue
      }
      catalog.known.push(known)
    }
  }
  return catalog
}

function attempt<T>(run: () => T): T | Error {
  try {
    return run()
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error))
  }
}

function describe(
  model: ModelConfig,
  { name, precision }: Rung,
  card: ModelCard,
  { devices: allDevices, scheduler }: Config,
): KnownVariant {
  const { block_size: blockSize, max_num_batched_tokens: maxBatchTokens, max_num_seqs: maxSlots } = scheduler
  const maxModelLen = Math.min(model.max_model_len ?? card.contextLength, card.contextLength)
  const { spec, files, weights } = card
  const devices = model.placement.devices ?? allDevices.map(({ id }) => id)
  const kinds = kindsOf(devices, allDevices)
  /** The most that it takes on any device it may be on. */
  const most = (bytesOn: (kind: 'cpu' | 'cuda') => number): number => Math.max(...kinds.map(bytesOn))
  const kvCacheDtype = kvDtypeOf(model.kv_cache_dtype ?? scheduler.kv_cache_dtype)
  const blockBytes = most((kind) => kvBlockBytes(spec, blockSize, kind, kvCacheDtype))
  const demand: VariantDemand = {
    name,
    devices,
    ordered: model.placement.devices !== undefined,
    weightBytes: most((kind) => estimateWeightBytes(card, precision, kind)),
    workspaceBytes: most((kind) => estimateWorkspaceBytes(spec, { maxBatchTokens, maxSlots }, precision, kind)),
    blockBytes,
    sequenceKvBytes: Math.ceil(maxModelLen / blockSize) * blockBytes,
  }
  const request: LoadRequest = { spec, files, weights, precision, maxSlots, maxBatchTokens, blockSize, kvCacheDtype }
  return {
    name,
    model: model.id,
    precision,
    vocabSize: spec.vocabSize,
    maxModelLen,
    blockBytes,
    quality: card.quality[precision],
    pinned: model.placement.pin,
    keepAliveMs: model.placement.keep_alive,
    limits: {
      maxNumSeqs: maxSlots,
      maxBatchTokens,
      blockSize,
      maxModelLen,
      prefixCaching: scheduler.enable_prefix_caching,
      ropeLimit: ropeLimit(spec),
    },
    demand,
    request,
    promptRopes: (length) => promptRopes(spec, length),
  }
}

/**
 * What a model's sizes are estimated for. An engine that serves another device lists the model all the same, also one whose
 * own device was dropped from the file.
 */
function kindsOf(wanted: readonly string[], devices: readonly DeviceConfig[]): DeviceConfig['kind'][] {
  const able = devices.filter(({ id }) => wanted.includes(id))
  const kinds = new Set((able.length > 0 ? able : devices).map(({ kind }) => kind))
  return kinds.size > 0 ? [...kinds] : ['cpu']
}

/** What is meant by a file's word. */
export function kvDtypeOf(word: Config['scheduler']['kv_cache_dtype']): KvCacheDtype {
  return word === 'auto' ? 'fp16' : word
}
