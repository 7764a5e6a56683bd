/** Architectures of GGUF files: one row for each `general.architecture`. What no key says follows llama.cpp. */
import type { Metadata } from './metadata.js'

/** How an architecture differs from llama. */
export interface GgufFamily {
  /** llama.cpp's converter permutes q and k of some architectures so that pairs are neighbours. */
  ropeInterleaved: boolean
  qkNorm: boolean
  /** q, k, v are one matrix in the file, and so are gate and up. */
  fused: boolean
  /** Norms after layers, a scaled embedding, GELU. */
  gemma: boolean
  /** Soft caps where the file names none: of attention scores, of logits; 0 = off. */
  softcaps: readonly [attention: number, final: number]
  /** Sliding window where the file names none; 0 = full attention. */
  window: number
  /** Every so many layers one attends to everything; 0 = all layers have the window. */
  windowPattern: number
  /** Every so many layers one does not rotate; 0 = all rotate. */
  noRopeStep: number
  /** Base of windowed layers where they have their own. */
  localTheta: number | undefined
  /** The model of so many layers scales attention by hidden size / heads instead of the head's size (27B). */
  wideLayers: number
}

const llama: GgufFamily = {
  ropeInterleaved: true,
  qkNorm: false,
  fused: false,
  gemma: false,
  softcaps: [0, 0],
  window: 0,
  windowPattern: 0,
  noRopeStep: 0,
  localTheta: undefined,
  wideLayers: -1,
}
const qwen2: GgufFamily = { ...llama, ropeInterleaved: false }
const gemma = { ...qwen2, gemma: true }

const FAMILIES: Readonly<Record<string, GgufFamily>> = {
  llama,
  qwen2,
  qwen3: { ...qwen2, qkNorm: true },
  smollm3: { ...llama, noRopeStep: 4 },
  gemma2: { ...gemma, softcaps: [50, 30], window: 4096, windowPattern: 2, wideLayers: 46 },
  gemma3: { ...gemma, qkNorm: true, windowPattern: 6, localTheta: 10_000, wideLayers: 62 },
  phi3: { ...qwen2, fused: true },
}

/** Throws ModelFileError for an architecture that is not served. */
export function ggufFamilyOf(metadata: Metadata, architecture: string): GgufFamily {
  const family = Object.hasOwn(FAMILIES, architecture) ? FAMILIES[architecture] : undefined
  if (family) return family
  const supported = Object.keys(FAMILIES).join(', ')
  throw metadata.unsupported(
    `architecture ${JSON.stringify(architecture.slice(0, 40))} is not supported (${supported} are)`,
  )
}
