/**
 * How each family of Hugging Face checkpoints differs from Llama: one row for each `model_type`. Defaults are those of
 * the family's configuration class in transformers, which leaves some of them out of config.json.
 */
import type { RawConfig } from './raw-config.js'

/** One family. Functions get the checked config.json. */
export interface Family {
  /** On q, k and v. */
  qkvBias: (config: RawConfig) => boolean
  /** On the attention's output projection. */
  outputBias: (config: RawConfig) => boolean
  /** On gate, up and down. */
  mlpBias: (config: RawConfig) => boolean
  qkNorm: boolean
  /** q, k, v are one matrix in the file, and so are gate and up. */
  fused: boolean
  /** Norm weights are stored as w - 1, embeddings scaled by sqrt(hidden size), outputs of layers normed. */
  gemma: boolean
  tiedByDefault: boolean
  activation: 'silu' | 'gelu_pytorch_tanh'
  headDim: number | undefined
  ropeTheta: number
  /** Whether a layer attends to `sliding_window` tokens only. */
  windowed: (config: RawConfig, layer: number) => boolean
  /** Whether a layer rotates queries and keys. */
  rotates: (config: RawConfig, layer: number) => boolean
  /** `sliding_window` where config.json has none; null in the file switches it off. */
  slidingWindow: number | undefined
  /** Soft caps where config.json has none: of attention scores, of logits. */
  softcaps: readonly [attention: number, final: number]
  /** The first files of Phi-3 say yarn or su and mean longrope. */
  yarnIsLongrope: boolean
  /** Base of windowed layers where it differs (Gemma 3). */
  localRopeTheta: ((config: RawConfig) => number) | undefined
}

const never = (): boolean => false
const always = (): boolean => true
const attentionBias = (config: RawConfig): boolean => config.attention_bias

const byLayerType = (otherwise: Family['windowed']): Family['windowed'] => {
  return (config, layer) =>
    config.layer_types ? config.layer_types[layer] === 'sliding_attention' : otherwise(config, layer)
}

// Qwen: the window is off unless switched on, and then starts at a layer.
const qwenWindow: Family['windowed'] = (config, layer) =>
  config.use_sliding_window === true &&
  byLayerType((same, index) => index >= (same.max_window_layers ?? 28))(config, layer)

const every = (pattern: (config: RawConfig) => number) =>
  byLayerType((config, layer) => (layer + 1) % pattern(config) !== 0)

const llama: Family = {
  qkvBias: attentionBias,
  outputBias: attentionBias,
  mlpBias: (config) => config.mlp_bias,
  qkNorm: false,
  fused: false,
  gemma: false,
  tiedByDefault: false,
  activation: 'silu',
  headDim: undefined,
  ropeTheta: 10_000,
  windowed: never,
  rotates: always,
  slidingWindow: undefined,
  softcaps: [0, 0],
  yarnIsLongrope: false,
  localRopeTheta: undefined,
}

// SmolLM3: layers without rotary embedding, by a list (1 = rotates) or one in so many.
const unlessNoPe: Family['rotates'] = (config, layer) =>
  config.no_rope_layers ? config.no_rope_layers[layer] === 1 : (layer + 1) % (config.no_rope_layer_interval ?? 4) !== 0

const noBias = { qkvBias: never, outputBias: never, mlpBias: never }

const gemma2: Family = {
  ...llama,
  mlpBias: never,
  gemma: true,
  tiedByDefault: true,
  activation: 'gelu_pytorch_tanh',
  headDim: 256,
  windowed: every(() => 2),
  slidingWindow: 4096,
  softcaps: [50, 30],
}

/** Families by `model_type`. */
export const FAMILIES: Readonly<Record<string, Family>> = {
  llama,
  mistral: { ...llama, ...noBias, windowed: always, slidingWindow: 4096 },
  qwen2: { ...llama, qkvBias: always, outputBias: never, mlpBias: never, windowed: qwenWindow },
  qwen3: { ...llama, mlpBias: never, qkNorm: true, headDim: 128, windowed: qwenWindow },
  smollm3: {
    ...llama,
    tiedByDefault: true,
    ropeTheta: 2_000_000,
    windowed: (config, layer) =>
      config.use_sliding_window === true && byLayerType((same, index) => !unlessNoPe(same, index))(config, layer),
    rotates: unlessNoPe,
  },
  gemma2,
  gemma3_text: {
    ...gemma2,
    qkNorm: true,
    softcaps: [0, 0],
    ropeTheta: 1_000_000,
    windowed: every((config) => config.sliding_window_pattern ?? config._sliding_window_pattern ?? 6),
    localRopeTheta: (config) => config.rope_local_base_freq ?? 10_000,
  },
  phi3: { ...llama, ...noBias, fused: true, windowed: always, yarnIsLongrope: true },
}
