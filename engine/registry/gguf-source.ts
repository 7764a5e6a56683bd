import type { GgufFamily } from './gguf-families.js'
import type { Metadata } from './metadata.js'

/** Dimensions of a model. */
export interface GgufSizes {
  vocab: number
  hidden: number
  layers: number
  ffn: number
  heads: number
  kvHeads: number
  headDim: number
}

/** One file while it is read. */
export interface GgufSource {
  metadata: Metadata
  family: GgufFamily
  /** Key of the architecture: "llama.block_count". */
  key: (name: string) => string
}
