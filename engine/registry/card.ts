import type { GgufFile } from '../native.js'
import { readGgufCard } from './gguf-card.js'
import { readHfCard } from './hf-card.js'
import { locateModel } from './locate.js'
import type { ModelAsset, ModelCard } from './model-card.js'

/**
 * Describes the model at a path of models.yaml: a .gguf, a .safetensors with config.json beside it, or a folder.
 * `readGguf` is the addon's. Throws ModelFileError for one that is not served, before memory is taken for it, and the
 * addon's NativeError for a GGUF that is none.
 */
export function readModelCard(path: string, readGguf: (path: string) => GgufFile): ModelCard {
  const located = locateModel(path)
  return located.format === 'gguf' ? readGgufCard(located.file, readGguf(located.file)) : readHfCard(path, located)
}

/** The text files of a model. Throws ModelFileError. */
export function modelAssets({ readText }: ModelCard): ModelAsset[] {
  return readText()
}
