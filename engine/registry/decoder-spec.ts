/** Everything in which decoder-only families differ; the part that the native side reads so far is ModelSpec. */
import type { ModelSpec } from '../native.js'
import type { RopeSettings, RopeTable } from './rope.js'

/** Function between the gate and up projections. gelu_tanh: the tanh approximation of GELU. */
export type Activation = 'silu' | 'gelu_tanh'

/** Rotary tables of a group of layers. */
export interface LayerRope {
  settings: RopeSettings
  /** For prompts up to ropeLengthLimit(settings); longer ones take ropeTable(settings, prompt length). */
  table: RopeTable
}

/** Hyperparameters of every family served. `ropeInvFreq` and `ropeScale` are those of `ropes[0]`. */
export interface DecoderSpec extends ModelSpec {
  activation: Activation
  /** Usually one; Gemma 3 has one for full and one for windowed layers. */
  ropes: LayerRope[]
  /** [numLayers] index into `ropes`; -1 = the layer does not rotate (SmolLM3's NoPE layers). */
  layerRopes: Int32Array
  /** Added to every norm weight (Gemma: 1, its files store w - 1); 0 otherwise. */
  normWeightOffset: 0 | 1
  /** Multiplies the embedding's output (Gemma: sqrt(hiddenSize)); 1 otherwise. */
  embeddingScale: number
  /** Scores s become c * tanh(s / c) before the mask; 0 = off. */
  attentionSoftcap: number
  /** The same for logits; 0 = off. */
  finalSoftcap: number
  /** Norms on the outputs of attention and feed-forward, before the residual (post_attn_norm, post_ffn_norm). */
  postNorms: boolean
}

/** What of a model the backend does not compute yet; empty = it can be loaded. */
export function unservedFeatures(spec: DecoderSpec): string[] {
  const features: [boolean, string][] = [
    [spec.activation !== 'silu', `the activation ${spec.activation}`],
    [spec.ropes.length > 1, 'several rotary tables'],
    [spec.layerRopes.includes(-1), 'layers without rotary embedding'],
    [spec.normWeightOffset !== 0, 'an offset on norm weights'],
    [spec.embeddingScale !== 1, 'a scaled embedding'],
    [spec.attentionSoftcap !== 0, 'a soft cap on attention scores'],
    [spec.finalSoftcap !== 0, 'a soft cap on logits'],
    [spec.postNorms, 'norms on the outputs of layers'],
  ]
  return features.filter(([present]) => present).map(([, name]) => name)
}
