/** config.json of a Hugging Face checkpoint: the hyperparameters of the families served. */
import type { DecoderSpec, LayerRope } from './decoder-spec.js'
import { FAMILIES, type Family } from './families.js'
import { checkShape } from './json-file.js'
import { invalidFile, quote, unsupported } from './model-file-error.js'
import { configSchema, MAX_CONTEXT, type RawConfig } from './raw-config.js'
import { readRopeSettings } from './rope-config.js'
import { ropeTable, scaledContext } from './rope.js'

/** Fields that change the computation where they are set, and the values that change nothing. */
const NOT_SERVED: readonly [field: string, neutral: readonly unknown[]][] = [
  ['num_local_experts', [0, 1]],
  ['num_experts', [0, 1]],
  ['use_bidirectional_attention', [false]],
  ['clip_qkv', []],
  ['embedding_multiplier', [1]],
  ['residual_multiplier', [1]],
  ['logits_scaling', [1]],
]

/** What a config.json says, with its family's differences applied. */
export interface HfConfig {
  raw: RawConfig
  family: Family
  spec: DecoderSpec
  /** The head is the embedding. */
  tied: boolean
  contextLength: number
}

/** Reads a parsed config.json. Throws ModelFileError with the field and the reason. */
export function parseHfConfig(file: string, value: Record<string, unknown>): HfConfig {
  const family = familyOf(file, value)
  const raw = checkShape(configSchema, value, file)
  refuseOptions(file, raw, family)
  const spec = decoderSpec(file, raw, family)
  return {
    raw,
    family,
    spec,
    tied: raw.tie_word_embeddings ?? family.tiedByDefault,
    contextLength: Math.min(...spec.ropes.slice(0, 1).map(({ settings }) => scaledContext(settings)), MAX_CONTEXT),
  }
}

function familyOf(file: string, { model_type: name }: Record<string, unknown>): Family {
  const family = typeof name === 'string' && Object.hasOwn(FAMILIES, name) ? FAMILIES[name] : undefined
  if (family) return family
  const supported = Object.keys(FAMILIES).join(', ')
  throw unsupported(file, `model_type ${quote(name)} is not supported (${supported} are)`)
}

function refuseOptions(file: string, raw: RawConfig, family: Family): void {
  const [architecture] = raw.architectures ?? []
  if (architecture !== undefined && !architecture.endsWith('ForCausalLM'))
    throw unsupported(
      file,
      `architecture ${quote(architecture)} is not supported (language models, ...ForCausalLM, are)`,
    )
  for (const [field, neutral] of NOT_SERVED) {
    const value = raw[field]
    if (value === undefined || value === null || neutral.includes(value)) continue
    throw unsupported(file, `${field} ${quote(value)} is not supported`)
  }
  const activation = raw.hidden_activation ?? raw.hidden_act ?? family.activation
  // Gemma's first files say "gelu" and mean the tanh approximation; their class ignores the field.
  if (activation !== family.activation && !(family.gemma && activation === 'gelu'))
    throw unsupported(file, `hidden_act ${quote(activation)} is not supported (${family.activation} is)`)
  for (const field of ['attn_logit_softcapping', 'final_logit_softcapping'] as const) {
    if (raw[field] && !family.gemma) throw unsupported(file, `${field} is not supported with ${raw.model_type}`)
  }
  const biased = family.qkvBias(raw) || family.outputBias(raw)
  if (raw.attention_bias && !biased) throw unsupported(file, `attention_bias is not supported with ${raw.model_type}`)
}

function decoderSpec(file: string, raw: RawConfig, family: Family): DecoderSpec {
  const layers = Array.from({ length: raw.num_hidden_layers }, (_, layer) => layer)
  const heads = headCounts(file, raw, family)
  const window = (raw.sliding_window === undefined ? family.slidingWindow : raw.sliding_window) ?? 0
  const windowed = layers.map((layer) => window > 0 && family.windowed(raw, layer))
  checkLengths(file, raw)
  const ropes = layerRopes(file, raw, family, heads.headDim)
  const local = ropes.length > 1
  return {
    vocabSize: raw.vocab_size,
    hiddenSize: raw.hidden_size,
    numLayers: raw.num_hidden_layers,
    ...heads,
    intermediateSize: raw.intermediate_size,
    rmsNormEps: raw.rms_norm_eps,
    ropeInterleaved: false,
    attentionScale: (family.gemma ? (raw.query_pre_attn_scalar ?? 256) : heads.headDim) ** -0.5,
    windows: Int32Array.from(windowed, (on) => (on ? window : 0)),
    activation: family.activation === 'silu' ? 'silu' : 'gelu_tanh',
    ropes,
    layerRopes: Int32Array.from(layers, (layer) =>
      family.rotates(raw, layer) ? Number(local && windowed[layer]) : -1,
    ),
    normWeightOffset: family.gemma ? 1 : 0,
    embeddingScale: family.gemma ? Math.sqrt(raw.hidden_size) : 1,
    attentionSoftcap: softcap(raw.attn_logit_softcapping, family.softcaps[0]),
    finalSoftcap: softcap(raw.final_logit_softcapping, family.softcaps[1]),
    postNorms: family.gemma,
  }
}

// Null switches it off; an absent field takes the family's default.
function softcap(value: number | null | undefined, fallback: number): number {
  return value === undefined ? fallback : (value ?? 0)
}

function headCounts(
  file: string,
  raw: RawConfig,
  family: Family,
): Pick<DecoderSpec, 'numHeads' | 'numKvHeads' | 'headDim'> {
  const numHeads = raw.num_attention_heads
  const numKvHeads = raw.num_key_value_heads ?? numHeads
  const headDim = raw.head_dim ?? family.headDim ?? raw.hidden_size / numHeads
  if (numHeads % numKvHeads !== 0)
    throw invalidFile(file, `num_key_value_heads ${numKvHeads} does not divide num_attention_heads ${numHeads}`)
  if (headDim % 2 !== 0) throw invalidFile(file, `head_dim ${headDim} is not an even integer`)
  return { numHeads, numKvHeads, headDim }
}

function checkLengths(file: string, raw: RawConfig): void {
  for (const field of ['layer_types', 'no_rope_layers'] as const) {
    const { length = raw.num_hidden_layers } = raw[field] ?? {}
    if (length !== raw.num_hidden_layers)
      throw invalidFile(file, `${field} has ${length} entries for ${raw.num_hidden_layers} layers`)
  }
}

function layerRopes(file: string, raw: RawConfig, family: Family, headDim: number): LayerRope[] {
  const { ropeTheta: full, yarnIsLongrope } = family
  const fallback = { full, local: family.localRopeTheta?.(raw), yarnIsLongrope }
  return readRopeSettings(file, raw, headDim, fallback).map((settings) => {
    try {
      return { settings, table: ropeTable(settings) }
    } catch (error) {
      throw invalidFile(file, `rope: ${error instanceof Error ? error.message : String(error)}`)
    }
  })
}
