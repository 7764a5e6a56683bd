import type { GgufFile, WeightSource } from '../native.js'
import { unservedFeatures } from './decoder-spec.js'
import { readGgufCard } from './gguf-card.js'
import { readHfCard } from './hf-card.js'
import { locateModel } from './locate.js'
import type { ModelAsset, ModelCard } from './model-card.js'
import { unsupported } from './model-file-error.js'
import { ropeLengthLimit } from './rope.js'
import { describeStorage } from './width.js'

/**
 * Describes the model at a path of models.yaml: a .gguf, a .safetensors with config.json beside it, or a folder.
 * `readGguf` is the addon's. Throws ModelFileError for one that is not served, before memory is taken for it, and the
 * addon's NativeError for a GGUF that is none.
 */
export function readModelCard(path: string, readGguf: (path: string) => GgufFile): ModelCard {
  const located = locateModel(path)
  return located.format === 'gguf' ? readGgufCard(located.file, readGguf(located.file)) : readHfCard(path, located)
}

/** The weights as the addon takes them so far. Throws ModelFileError for what it does not convert or compute yet. */
export function weightSources({ path, spec, weights }: ModelCard): WeightSource[] {
  const [feature] = unservedFeatures(spec)
  if (feature !== undefined) throw unsupported(path, `${feature} cannot be computed yet`)
  return weights.map((weight) => {
    const { values } = weight.tensors
    if (weight.storage.method !== 'plain' || values === undefined)
      throw unsupported(path, `weights stored as ${describeStorage(weight)} cannot be loaded yet`)
    const { slot, shape } = weight
    if (/\.(?:o|gate|up|down)_bias$/.test(slot)) throw unsupported(path, `the bias ${slot} cannot be computed yet`)
    return { slot, file: values.file, offset: values.offset, bytes: values.bytes, type: values.type, shape }
  })
}

/** The text files of a model. Throws ModelFileError. */
export function modelAssets({ readText }: ModelCard): ModelAsset[] {
  return readText()
}

/** Longest sequence that is served so far: one rotary table serves all of a model's sequences. */
export function servedContext({ contextLength, spec }: ModelCard): number {
  return Math.min(contextLength, ...spec.ropes.map(({ settings }) => ropeLengthLimit(settings)))
}
