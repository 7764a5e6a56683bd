/**
 * Models in GGUF files: metadata to hyperparameters, tensors to weights. Names and defaults are those of the format's
 * specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and of llama.cpp's converter. Every number
 * is checked for range and against the tensors' shapes before anything is sized by it.
 */
import type { GgufFile, TensorInfo } from '../native.js'
import type { DecoderSpec, LayerRope } from './decoder-spec.js'
import { ggufFamilyOf } from './gguf-families.js'
import { type FloatReader, readGgufRopes } from './gguf-rope.js'
import type { GgufSizes, GgufSource } from './gguf-source.js'
import { mapGgufWeights } from './gguf-weights.js'
import type { Metadata } from './metadata.js'
import type { StoredWeight } from './stored-weight.js'

/** Bounds of any model that one box can hold; they keep every later product inside 2^53. */
const MAX_LAYERS = 1024
const MAX_HIDDEN = 1 << 17
const MAX_FFN = 1 << 20
const MAX_HEADS = 1024
const MAX_VOCAB = 1 << 24
const MAX_CONTEXT = 2 ** 31 - 1

/** Hyperparameters, weights and limits of a file. */
export interface GgufModel {
  spec: DecoderSpec
  weights: StoredWeight[]
  /** Longest sequence the model was made for. */
  contextLength: number
}

/** Throws ModelFileError for whatever is missing, contradictory or not served. */
export function readGgufModel(
  file: GgufFile,
  metadata: Metadata,
  architecture: string,
  readFloats: FloatReader,
): GgufModel {
  const family = ggufFamilyOf(metadata, architecture)
  const source: GgufSource = { metadata, family, key: (name) => `${architecture}.${name}` }
  refuseMixtureOfExperts(source)
  const tensors = new Map(file.tensors.map((tensor) => [tensor.name, tensor]))
  const sizes = readSizes(source, tensors)
  const weights = mapGgufWeights(source, sizes, tensors)
  const contextLength = metadata.integer(source.key('context_length'), 1, MAX_CONTEXT)
  const ropes = readGgufRopes({ source, headDim: sizes.headDim, contextLength, tensors, readFloats })
  return { spec: decoderSpec(source, sizes, ropes), weights, contextLength }
}

function decoderSpec({ metadata, family, key }: GgufSource, sizes: GgufSizes, ropes: LayerRope[]): DecoderSpec {
  const { hidden, heads, headDim } = sizes
  const layers = Array.from({ length: sizes.layers }, (_, layer) => layer)
  const window = metadata.integer(key('attention.sliding_window'), 0, MAX_CONTEXT, family.window)
  const windowed = (layer: number) => family.windowPattern === 0 || (layer + 1) % family.windowPattern !== 0
  const rotates = (layer: number) => family.noRopeStep === 0 || (layer + 1) % family.noRopeStep !== 0
  const perHead = sizes.layers === family.wideLayers ? hidden / heads : headDim
  const [attentionSoftcap, finalSoftcap] = family.softcaps
  return {
    vocabSize: sizes.vocab,
    hiddenSize: hidden,
    numLayers: sizes.layers,
    numHeads: heads,
    numKvHeads: sizes.kvHeads,
    headDim,
    intermediateSize: sizes.ffn,
    rmsNormEps: metadata.number(key('attention.layer_norm_rms_epsilon'), 1e-12, 1),
    ropeInterleaved: family.ropeInterleaved,
    attentionScale: metadata.number(key('attention.scale'), 1e-6, 1e6, 1 / Math.sqrt(perHead)),
    windows: Int32Array.from(layers, (layer) => (windowed(layer) ? window : 0)),
    activation: family.gemma ? 'gelu_tanh' : 'silu',
    ropes,
    layerRopes: Int32Array.from(layers, (layer) => (rotates(layer) ? Number(ropes.length > 1 && windowed(layer)) : -1)),
    // The converter adds the 1 to Gemma's norm weights.
    normWeightOffset: 0,
    embeddingScale: family.gemma ? Math.sqrt(hidden) : 1,
    attentionSoftcap: metadata.number(key('attn_logit_softcapping'), 0, 1e6, attentionSoftcap),
    finalSoftcap: metadata.number(key('final_logit_softcapping'), 0, 1e6, finalSoftcap),
    postNorms: family.gemma,
  }
}

function refuseMixtureOfExperts({ metadata, key }: GgufSource): void {
  if (metadata.integer(key('expert_count'), 0, 2 ** 31, 0) > 0)
    throw metadata.unsupported('mixtures of experts are not supported')
}

function readSizes(source: GgufSource, tensors: ReadonlyMap<string, TensorInfo>): GgufSizes {
  const { metadata, key } = source
  const layers = metadata.integer(key('block_count'), 1, MAX_LAYERS)
  const hidden = metadata.integer(key('embedding_length'), 1, MAX_HIDDEN)
  const heads = metadata.integer(key('attention.head_count'), 1, MAX_HEADS)
  const kvHeads = readKvHeads(source, heads, layers)
  if (heads % kvHeads !== 0)
    throw metadata.invalid(`${key('attention.head_count')} ${heads} is not a multiple of head_count_kv ${kvHeads}`)
  const headDim = readHeadDim(source, hidden, heads)
  const embedding = tensors.get('token_embd.weight')
  if (embedding === undefined) throw metadata.invalid('tensor "token_embd.weight" is missing')
  const vocab = embedding.shape[0] ?? 0
  if (embedding.shape.length !== 2 || vocab > MAX_VOCAB)
    throw metadata.invalid(`tensor "token_embd.weight" has shape [${embedding.shape.join(', ')}]`)
  if (metadata.integer(key('vocab_size'), 1, MAX_VOCAB, vocab) !== vocab)
    throw metadata.invalid(`${key('vocab_size')} is not the ${vocab} rows of token_embd.weight`)
  return {
    layers,
    hidden,
    heads,
    kvHeads,
    vocab,
    ffn: metadata.integer(key('feed_forward_length'), 1, MAX_FFN),
    headDim,
  }
}

/** Files may give one number for each layer; only equal ones are served. */
function readKvHeads({ metadata, key: keyOf }: GgufSource, heads: number, layers: number): number {
  const key = keyOf('attention.head_count_kv')
  const perLayer = metadata.isList(key) ? metadata.numbers(key) : undefined
  if (perLayer === undefined) return metadata.integer(key, 1, heads, heads)
  const first = perLayer[0]
  if (perLayer.length !== layers || first === undefined || !Number.isInteger(first) || first < 1 || first > heads)
    throw metadata.invalid(`${key} is not a count for each layer`)
  if (Array.from(perLayer).some((count) => count !== first)) throw metadata.unsupported(`${key} differs between layers`)
  return first
}

function readHeadDim({ metadata, key }: GgufSource, hidden: number, heads: number): number {
  const derived = hidden % heads === 0 ? hidden / heads : undefined
  if (derived === undefined && !metadata.has(key('attention.key_length'))) {
    throw metadata.invalid(
      `${key('embedding_length')} ${hidden} is not a multiple of head_count ${heads}, and no key_length is given`,
    )
  }
  const keys = metadata.integer(key('attention.key_length'), 2, 1024, derived)
  const values = metadata.integer(key('attention.value_length'), 2, 1024, keys)
  if (keys !== values) throw metadata.unsupported(`key_length ${keys} and value_length ${values} differ`)
  if (keys % 2 !== 0) throw metadata.invalid(`a head of ${keys} values cannot be rotated in pairs`)
  return keys
}
