/**
 * Models in GGUF files: metadata to hyperparameters, tensors to weights. Names and defaults are those of the format's
 * specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and of llama.cpp's converter. Every number
 * is checked for range and against the tensors' shapes before anything is sized by it.
 */
import type { GgufFile, TensorInfo } from '../native.js'
import type { DecoderSpec } from './decoder-spec.js'
import { type GgufFamily, ggufFamilyOf } from './gguf-families.js'
import type { Metadata } from './metadata.js'
import { ropeTable, type RopeSettings } from './rope.js'
import { plainWeight, type StoredWeight } from './stored-weight.js'

/** Bounds of any model that one box can hold; they keep every later product inside 2^53. */
const MAX_LAYERS = 1024
const MAX_HIDDEN = 1 << 17
const MAX_FFN = 1 << 20
const MAX_HEADS = 1024
const MAX_VOCAB = 1 << 24
const MAX_CONTEXT = 2 ** 31 - 1

/** Types the native loader converts. */
const TENSOR_TYPES = new Set(
  (
    'f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s ' +
    'iq4_nl iq4_xs tq1_0 tq2_0 mxfp4 nvfp4'
  ).split(' '),
)

/** Tensors that are read by the card itself. */
const ROPE_FACTORS = 'rope_freqs.weight'

/** Hyperparameters, weights and limits of a file. */
export interface GgufModel {
  spec: DecoderSpec
  weights: StoredWeight[]
  /** Longest sequence the model was made for. */
  contextLength: number
}

/** Reads `count` little-endian floats of the model file at an absolute offset. */
export type FloatReader = (offset: number, count: number) => Float32Array

interface Sizes {
  vocab: number
  hidden: number
  layers: number
  ffn: number
  heads: number
  kvHeads: number
  headDim: number
}

/** One file while it is read. */
interface Source {
  metadata: Metadata
  family: GgufFamily
  /** Key of the architecture: "llama.block_count". */
  key: (name: string) => string
}

/** Throws ModelFileError for whatever is missing, contradictory or not served. */
export function readGgufModel(
  file: GgufFile,
  metadata: Metadata,
  architecture: string,
  readFloats: FloatReader,
): GgufModel {
  const family = ggufFamilyOf(metadata, architecture)
  const source: Source = { metadata, family, key: (name) => `${architecture}.${name}` }
  refuseMixtureOfExperts(source)
  const tensors = new Map(file.tensors.map((tensor) => [tensor.name, tensor]))
  const sizes = readSizes(source, tensors)
  const weights = mapWeights(source, sizes, tensors)
  const contextLength = metadata.integer(source.key('context_length'), 1, MAX_CONTEXT)
  const settings = ropeSettings(source, sizes.headDim, contextLength)
  const invFreq = dividedBy(metadata, ropeTable(settings).invFreq, tensors.get(ROPE_FACTORS), readFloats)
  const window = metadata.integer(source.key('attention.sliding_window'), 0, MAX_CONTEXT, 0)
  const scale = 1 / Math.sqrt(sizes.headDim)
  const spec: DecoderSpec = {
    vocabSize: sizes.vocab,
    hiddenSize: sizes.hidden,
    numLayers: sizes.layers,
    numHeads: sizes.heads,
    numKvHeads: sizes.kvHeads,
    headDim: sizes.headDim,
    intermediateSize: sizes.ffn,
    rmsNormEps: metadata.number(source.key('attention.layer_norm_rms_epsilon'), 1e-12, 1),
    ropeInterleaved: family.ropeInterleaved,
    attentionScale: metadata.number(source.key('attention.scale'), 1e-6, 1e6, scale),
    windows: new Int32Array(sizes.layers).fill(window),
    activation: 'silu',
    ropes: [{ settings, table: { invFreq, scale: 1 } }],
    layerRopes: new Int32Array(sizes.layers),
    normWeightOffset: 0,
    embeddingScale: 1,
    attentionSoftcap: 0,
    finalSoftcap: 0,
    postNorms: false,
  }
  return { spec, weights, contextLength }
}

function refuseMixtureOfExperts({ metadata, key }: Source): void {
  if (metadata.integer(key('expert_count'), 0, 2 ** 31, 0) > 0)
    throw metadata.unsupported('mixtures of experts are not supported')
}

function readSizes(source: Source, tensors: ReadonlyMap<string, TensorInfo>): Sizes {
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
function readKvHeads({ metadata, key: keyOf }: Source, heads: number, layers: number): number {
  const key = keyOf('attention.head_count_kv')
  const perLayer = metadata.isList(key) ? metadata.numbers(key) : undefined
  if (perLayer === undefined) return metadata.integer(key, 1, heads, heads)
  const first = perLayer[0]
  if (perLayer.length !== layers || first === undefined || !Number.isInteger(first) || first < 1 || first > heads)
    throw metadata.invalid(`${key} is not a count for each layer`)
  if (Array.from(perLayer).some((count) => count !== first)) throw metadata.unsupported(`${key} differs between layers`)
  return first
}

function readHeadDim({ metadata, key }: Source, hidden: number, heads: number): number {
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

/** Rotary frequencies before the file's own divisors. */
function ropeSettings(source: Source, headDim: number, contextLength: number): RopeSettings {
  const { metadata, key } = source
  const rotaryDim = metadata.integer(key('rope.dimension_count'), 2, headDim, headDim)
  if (rotaryDim % 2 !== 0) throw metadata.invalid(`${key('rope.dimension_count')} ${rotaryDim} is odd`)
  const theta = metadata.number(key('rope.freq_base'), 1.000001, 1e12, 10_000)
  const factor = linearScale(source)
  const scaling = factor === 1 ? { rope_type: 'default' as const } : { rope_type: 'linear' as const, factor }
  return { scaling, theta, rotaryDim, maxPositionEmbeddings: contextLength }
}

/** Llama 3.1 and later: a divisor for each frequency stands in the file. */
function dividedBy(
  metadata: Metadata,
  invFreq: Float32Array,
  factors: TensorInfo | undefined,
  readFloats: FloatReader,
): Float32Array {
  if (factors === undefined) return invFreq
  const count = invFreq.length
  if (factors.type !== 'f32' || factors.shape.length !== 1 || factors.shape[0] !== count)
    throw metadata.invalid(`tensor "${ROPE_FACTORS}" is not ${count} values of type f32`)
  const divisors = readFloats(factors.offset, count)
  if (divisors.some((divisor) => !(divisor >= 1e-6 && divisor <= 1e6)))
    throw metadata.invalid(`tensor "${ROPE_FACTORS}" holds a value outside 1e-6 to 1e6`)
  return invFreq.map((frequency, index) => frequency / (divisors[index] ?? 1))
}

function linearScale({ metadata, key }: Source): number {
  const legacyKey = key('rope.scale_linear')
  const kind = metadata.text(key('rope.scaling.type')) ?? (metadata.has(legacyKey) ? 'linear' : 'none')
  if (kind === 'none') return 1
  if (kind !== 'linear')
    throw metadata.unsupported(
      `rope scaling ${JSON.stringify(kind.slice(0, 40))} is not supported (none and linear are)`,
    )
  const legacy = metadata.number(legacyKey, 1, 1e6, 1)
  return metadata.number(key('rope.scaling.factor'), 1, 1e6, legacy)
}

/** A tensor of the architecture: its name in the file, its slot, its shape, whether it may be absent. */
interface Place {
  tensor: string
  slot: string
  shape: number[]
  optional?: boolean
}

function layerPlaces(family: GgufFamily, layer: number, { hidden, ffn, heads, kvHeads, headDim }: Sizes): Place[] {
  const q = heads * headDim
  const kv = kvHeads * headDim
  const place = (tensor: string, slot: string, ...shape: number[]): Place => ({
    tensor: `blk.${layer}.${tensor}`,
    slot: `layers.${layer}.${slot}`,
    shape,
  })
  const optional = (tensor: string, slot: string, ...shape: number[]): Place => ({
    ...place(tensor, slot, ...shape),
    optional: true,
  })
  return [
    place('attn_norm.weight', 'attn_norm', hidden),
    place('attn_q.weight', 'q', q, hidden),
    place('attn_k.weight', 'k', kv, hidden),
    place('attn_v.weight', 'v', kv, hidden),
    place('attn_output.weight', 'o', hidden, q),
    ...(family.qkNorm
      ? [place('attn_q_norm.weight', 'q_norm', headDim), place('attn_k_norm.weight', 'k_norm', headDim)]
      : []),
    optional('attn_q.bias', 'q_bias', q),
    optional('attn_k.bias', 'k_bias', kv),
    optional('attn_v.bias', 'v_bias', kv),
    place('ffn_norm.weight', 'ffn_norm', hidden),
    place('ffn_gate.weight', 'gate', ffn, hidden),
    place('ffn_up.weight', 'up', ffn, hidden),
    place('ffn_down.weight', 'down', hidden, ffn),
  ]
}

function places(family: GgufFamily, sizes: Sizes): Place[] {
  const { vocab, hidden } = sizes
  return [
    { tensor: 'token_embd.weight', slot: 'embed', shape: [vocab, hidden] },
    ...Array.from({ length: sizes.layers }, (_, layer) => layerPlaces(family, layer, sizes)).flat(),
    { tensor: 'output_norm.weight', slot: 'final_norm', shape: [hidden] },
    { tensor: 'output.weight', slot: 'head', shape: [vocab, hidden], optional: true },
  ]
}

/** Every tensor finds its slot, every slot its tensor: one left over would change the result unseen. */
function mapWeights(
  { metadata, family, key }: Source,
  sizes: Sizes,
  tensors: ReadonlyMap<string, TensorInfo>,
): StoredWeight[] {
  const unplaced = new Set(tensors.keys())
  unplaced.delete(ROPE_FACTORS)
  const weights: StoredWeight[] = []
  for (const { tensor, slot, shape, optional } of places(family, sizes)) {
    const info = tensors.get(tensor)
    if (info === undefined && optional) continue
    if (info === undefined) throw metadata.invalid(`tensor "${tensor}" is missing`)
    checkTensor(metadata, info, shape)
    unplaced.delete(tensor)
    const { offset, bytes, type } = info
    weights.push(plainWeight(slot, shape, { file: 0, offset, bytes, type, shape }))
  }
  const [extra] = unplaced
  if (extra !== undefined)
    throw metadata.unsupported(
      `tensor ${JSON.stringify(extra.slice(0, 64))} has no place in a ${key('').slice(0, -1)} model of ${sizes.layers} layers`,
    )
  return weights
}

function checkTensor(metadata: Metadata, info: TensorInfo, shape: readonly number[]): void {
  const found = `[${info.shape.join(', ')}]`
  if (found !== `[${shape.join(', ')}]`)
    throw metadata.invalid(`tensor "${info.name}" has shape ${found}; the metadata says [${shape.join(', ')}]`)
  if (!TENSOR_TYPES.has(info.type))
    throw metadata.unsupported(
      `tensor "${info.name}" has type ${info.type}; supported are ${[...TENSOR_TYPES].join(', ')}`,
    )
}
