/** Architectures of GGUF files: one row for each `general.architecture`. */
import type { Metadata } from './metadata.js'

/** How an architecture differs from llama. */
export interface GgufFamily {
  /** llama.cpp's converter permutes q and k of some architectures so that pairs are neighbours. */
  ropeInterleaved: boolean
  qkNorm: boolean
}

const FAMILIES: Readonly<Record<string, GgufFamily>> = {
  llama: { ropeInterleaved: true, qkNorm: false },
  qwen2: { ropeInterleaved: false, qkNorm: false },
  qwen3: { ropeInterleaved: false, qkNorm: true },
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
