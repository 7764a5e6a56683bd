import { fileURLToPath } from 'node:url'
import { type ModelAsset, type ModelCard, modelAssets, readModelCard } from '../../engine/registry/index.js'
import { readGgufInTypeScript } from './read-gguf.js'

/** The embedded model's file. */
export const SMOLLM2_FILE = fileURLToPath(new URL('../../models/smollm2-135m-instruct-q4_1.gguf', import.meta.url))

/** Its card, read without the addon. */
export function smollm2Card(): ModelCard {
  return readModelCard(SMOLLM2_FILE, readGgufInTypeScript)
}

/** Its text files, as the engine hands them over. */
export function smollm2Assets(): ModelAsset[] {
  return modelAssets(smollm2Card())
}
