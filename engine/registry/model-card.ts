import type { Precision } from '../native.js'
import type { DecoderSpec } from './decoder-spec.js'
import type { KnownHash } from './known-hash.js'
import type { RungQuality } from './quality.js'
import type { StoredWeight } from './stored-weight.js'

/** What is known of a model without loading it. */
export interface ModelCard {
  /** As configured: a file or a folder. */
  path: string
  format: 'gguf' | 'safetensors'
  /** Files with weights; TensorRef.file is an index into them. */
  files: string[]
  /** What is known of each file's content; empty where nobody has said anything. */
  hashes: KnownHash[][]
  /** From the file's metadata or its name. For people only: it identifies nothing. */
  name: string
  /** `general.architecture` of a GGUF, `model_type` of config.json. */
  architecture: string
  licence: string | undefined
  /** Weights in all. */
  parameters: number
  /** Longest sequence the model was made for, tokens. */
  contextLength: number
  spec: DecoderSpec
  weights: StoredWeight[]
  /** The rung that the files natively serve. */
  precision: Precision
  /** Of the rungs that have been measured. */
  quality: RungQuality
  /** What a person should know: blocks that only the fp16 rung keeps, a quality file that cannot be read. */
  notices: string[]
  /** The files that the gateway builds tokenizer, chat template and stop tokens from. Throws ModelFileError. */
  readText: () => ModelAsset[]
}

/** One file for the gateway's text layer. */
export interface ModelAsset {
  name: string
  data: Uint8Array
}
