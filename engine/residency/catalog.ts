import type { Config, ModelConfig } from '../config/index.js'
import type { GgufFile, LoadRequest, Precision } from '../native.js'
import { estimateWeightBytes, type ModelCard, readModelCard } from '../registry/index.js'
import { estimateWorkspaceBytes, kvBlockBytes } from './estimate.js'
import type { VariantDemand } from './plan.js'

/** A rung whose file is understood: what it needs and how to load it. */
export interface KnownVariant {
  name: string
  model: string
  precision: Precision
  vocabSize: number
  maxModelLen: number
  blockBytes: number
  demand: VariantDemand
  request: LoadRequest
}

/** A rung whose file cannot be served. */
interface BrokenVariant {
  name: string
  model: string
  precision: Precision
  error: string
}

/** Every rung of the configuration in ladder order, and a card of each model for its text assets. */
export interface Catalog {
  known: KnownVariant[]
  broken: BrokenVariant[]
  cards: Map<string, ModelCard>
}

/** Reads the files' headers; no weight is touched. A file is read once, however many rungs come from it. */
export function readCatalog(config: Config, readGguf: (path: string) => GgufFile): Catalog {
  const catalog: Catalog = { known: [], broken: [], cards: new Map() }
  const files = new Map<string, ModelCard | Error>()
  const allDevices = config.devices.map(({ id }) => id)
  for (const model of config.models) {
    for (const { precision, path } of model.variants) {
      const name = `${model.id}:${precision}`
      const card = files.get(path) ?? readCard(path, readGguf)
      files.set(path, card)
      if (card instanceof Error) {
        catalog.broken.push({ name, model: model.id, precision, error: card.message })
        continue
      }
      if (!catalog.cards.has(model.id)) catalog.cards.set(model.id, card)
      const devices = model.placement.devices ?? allDevices
      catalog.known.push(describe(name, model, precision, card, devices, config))
    }
  }
  return catalog
}

function readCard(path: string, readGguf: (path: string) => GgufFile): ModelCard | Error {
  try {
    return readModelCard(path, readGguf)
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error))
  }
}

function describe(
  name: string,
  model: ModelConfig,
  precision: Precision,
  card: ModelCard,
  devices: readonly string[],
  { scheduler }: Config,
): KnownVariant {
  const { block_size: blockSize, max_num_batched_tokens: maxBatchTokens, max_num_seqs: maxSlots } = scheduler
  const maxModelLen = Math.min(model.max_model_len ?? card.contextLength, card.contextLength)
  const blockBytes = kvBlockBytes(card.spec, blockSize)
  const demand: VariantDemand = {
    name,
    devices,
    weightBytes: estimateWeightBytes(card, precision),
    workspaceBytes: estimateWorkspaceBytes(card.spec, maxBatchTokens),
    sequenceKvBytes: Math.ceil(maxModelLen / blockSize) * blockBytes,
  }
  const { spec, weights, file } = card
  const request: LoadRequest = { spec, files: [file], weights, precision, maxSlots, maxBatchTokens, blockSize }
  return { name, model: model.id, precision, vocabSize: spec.vocabSize, maxModelLen, blockBytes, demand, request }
}
