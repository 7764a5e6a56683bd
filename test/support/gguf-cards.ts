/** Cards of GGUF headers that are made up in a test. */
import type { GgufFile, GgufValue } from '../../engine/native.js'
import { type ModelCard, ModelFileError, readModelCard } from '../../engine/registry/index.js'
import { tinyGguf } from './tiny-gguf.js'

/** The tiny model's header with one key changed, or removed. */
export function change(key: string, value: GgufValue | undefined): GgufFile {
  return tinyGguf({ [key]: value })
}

/** The card of a header. */
export function card(file: GgufFile, path = 'x.gguf'): ModelCard {
  return readModelCard(path, () => file)
}

/** "code: message" of what reading a header throws. */
export function fault(file: GgufFile): string {
  try {
    card(file)
    return 'accepted'
  } catch (error) {
    if (!(error instanceof ModelFileError)) throw error
    return `${error.code}: ${error.message}`
  }
}
