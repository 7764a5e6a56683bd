/** Rotary tables of GGUF files: scaling from the metadata, divisors of the frequencies from tensors. */
import type { TensorInfo } from '../native.js'
import type { LayerRope } from './decoder-spec.js'
import type { GgufSource } from './gguf-source.js'
import type { Metadata } from './metadata.js'
import { type RopeScaling, type RopeSettings, ropeTable } from './rope.js'

const FREQUENCIES = 'rope_freqs.weight'
const SHORT = 'rope_factors_short.weight'
const LONG = 'rope_factors_long.weight'

/** Tensors that are no weights: the card reads them. */
export const ROPE_TENSORS: ReadonlySet<string> = new Set([FREQUENCIES, SHORT, LONG])

/** Reads `count` little-endian floats of the model file at an absolute offset. */
export type FloatReader = (offset: number, count: number) => Float32Array

/** What tables are made from. */
export interface RopeSource {
  source: GgufSource
  headDim: number
  contextLength: number
  tensors: ReadonlyMap<string, TensorInfo>
  readFloats: FloatReader
}

/** Tables of full layers and, where the family has a base of their own for them, of windowed layers. */
export function readGgufRopes(inputs: RopeSource): LayerRope[] {
  const { source, headDim, contextLength, tensors } = inputs
  const { metadata, family, key } = source
  const rotaryDim = metadata.integer(key('rope.dimension_count'), 2, headDim, headDim)
  if (rotaryDim % 2 !== 0) throw metadata.invalid(`${key('rope.dimension_count')} ${rotaryDim} is odd`)
  const base = { rotaryDim, maxPositionEmbeddings: contextLength }
  const theta = metadata.number(key('rope.freq_base'), 1.000001, 1e12, 10_000)
  const settings: RopeSettings = { ...base, theta, scaling: scalingOf(inputs, rotaryDim) }
  const { invFreq, scale } = ropeTable(settings)
  const full = { settings, table: { invFreq: dividedBy(inputs, invFreq, tensors.get(FREQUENCIES)), scale } }
  if (family.localTheta === undefined) return [full]
  const localTheta = metadata.number(key('rope.freq_base_swa'), 1.000001, 1e12, family.localTheta)
  const local: RopeSettings = { ...base, theta: localTheta, scaling: { rope_type: 'default' } }
  return [full, { settings: local, table: ropeTable(local) }]
}

/** Llama 3.1 and later: a divisor for each frequency stands in the file. */
function dividedBy(inputs: RopeSource, invFreq: Float32Array, factors: TensorInfo | undefined): Float32Array {
  if (factors === undefined) return invFreq
  const divisors = readFactors(inputs, factors, invFreq.length)
  return invFreq.map((frequency, index) => frequency / (divisors[index] ?? 1))
}

function readFactors({ source: { metadata }, readFloats }: RopeSource, info: TensorInfo, count: number): Float32Array {
  if (info.type !== 'f32' || info.shape.length !== 1 || info.shape[0] !== count)
    throw metadata.invalid(`tensor "${info.name}" is not ${count} values of type f32`)
  const factors = readFloats(info.offset, count)
  if (factors.some((factor) => !(factor >= 1e-6 && factor <= 1e6)))
    throw metadata.invalid(`tensor "${info.name}" holds a value outside 1e-6 to 1e6`)
  return factors
}

function scalingOf(inputs: RopeSource, rotaryDim: number): RopeScaling {
  const { metadata, key } = inputs.source
  const [short, long] = [inputs.tensors.get(SHORT), inputs.tensors.get(LONG)]
  if (short || long) return longrope(inputs, short, long, rotaryDim / 2)
  const legacyKey = key('rope.scale_linear')
  const kind = metadata.text(key('rope.scaling.type')) ?? (metadata.has(legacyKey) ? 'linear' : 'none')
  if (kind !== 'none' && kind !== 'linear' && kind !== 'yarn')
    throw metadata.unsupported(
      `rope scaling ${JSON.stringify(kind.slice(0, 40))} is not supported (none, linear, yarn and longrope are)`,
    )
  const legacy = metadata.number(legacyKey, 1, 1e6, 1)
  if (kind === 'none') return { rope_type: 'default' }
  const factor = metadata.number(key('rope.scaling.factor'), 1, 1e6, kind === 'linear' ? legacy : undefined)
  if (factor === 1) return { rope_type: 'default' }
  if (kind === 'linear') return { rope_type: 'linear', factor }
  return { rope_type: 'yarn', factor, original_max_position_embeddings: originalContext(metadata, key) }
}

function originalContext(metadata: Metadata, key: GgufSource['key']): number {
  return metadata.integer(key('rope.scaling.original_context_length'), 1, 2 ** 31 - 1)
}

function longrope(
  inputs: RopeSource,
  short: TensorInfo | undefined,
  long: TensorInfo | undefined,
  count: number,
): RopeScaling {
  const { metadata, key } = inputs.source
  if (!short || !long) throw metadata.invalid(`tensor "${short ? LONG : SHORT}" is missing`)
  const attentionKey = key('rope.scaling.attn_factor')
  return {
    rope_type: 'longrope',
    short_factor: [...readFactors(inputs, short, count)],
    long_factor: [...readFactors(inputs, long, count)],
    original_max_position_embeddings: originalContext(metadata, key),
    ...(metadata.has(attentionKey) && { attention_factor: metadata.number(attentionKey, 1e-3, 1e3) }),
  }
}
