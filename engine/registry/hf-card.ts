/** The card of a Hugging Face checkpoint: a folder of safetensors with config.json beside them. */
import { join } from 'node:path'
import { recordFileOf } from './hash-record.js'
import type { ModelCard } from './model-card.js'
import { type HfConfig, parseHfConfig } from './hf-config.js'
import { readHfText } from './hf-text.js'
import { mapHfWeights } from './hf-weights.js'
import { readJsonObject, readSmallFile } from './json-file.js'
import { type Located, nameOf } from './locate.js'
import { invalidFile } from './model-file-error.js'
import { readBeside } from './notices.js'
import { parseQuantizationConfig } from './quantization-config.js'
import { storedPrecision } from './width.js'
import { elementsOf } from './stored-weight.js'
import { readTensorTable } from './tensor-table.js'

const MAX_CONFIG_BYTES = 4 * 2 ** 20
const MAX_README_BYTES = 4 * 2 ** 20

/** Reads and checks everything but the weights' values and the tokenizer. Throws ModelFileError. */
export function readHfCard(path: string, located: Extract<Located, { format: 'safetensors' }>): ModelCard {
  const { folder, files } = located
  const { tensors } = readTensorTable(located)
  const file = join(folder, 'config.json')
  const value = readJsonObject(file, MAX_CONFIG_BYTES)
  if (value === undefined) throw invalidFile(folder, 'config.json is missing')
  const config = parseHfConfig(file, value)
  const storageOf = parseQuantizationConfig(...quantizationOf(folder, file, config))
  const weights = mapHfWeights({ path, config, files, tensors, storageOf })
  const { raw, spec, contextLength } = config
  return {
    path,
    format: 'safetensors',
    files,
    name: nameOf(folder),
    architecture: raw.model_type,
    licence: licenceOf(folder),
    parameters: weights.reduce((sum, weight) => sum + elementsOf(weight), 0),
    contextLength,
    spec,
    weights,
    precision: storedPrecision(weights),
    ...readBeside(files, recordFileOf(located), weights),
    readText: () => readHfText(folder, raw, contextLength),
  }
}

/** In config.json, or for old AutoGPTQ files in quantize_config.json. */
function quantizationOf(
  folder: string,
  file: string,
  { raw }: HfConfig,
): [file: string, config: Record<string, unknown> | undefined] {
  if (raw.quantization_config) return [file, raw.quantization_config]
  const legacy = join(folder, 'quantize_config.json')
  return [legacy, readJsonObject(legacy, MAX_CONFIG_BYTES)]
}

/** As the README's front matter names it, otherwise that there is a licence file. */
function licenceOf(folder: string): string | undefined {
  const readme = readSmallFile(join(folder, 'README.md'), MAX_README_BYTES)?.toString('utf8', 0, 16_384)
  const named = /^---\r?\n[^]*?^license:[ \t]*["']?([A-Za-z0-9._-]{1,100})/m.exec(readme ?? '')?.[1]
  if (named) return named
  const file = ['LICENSE', 'LICENSE.txt', 'LICENSE.md'].find((name) =>
    readSmallFile(join(folder, name), MAX_README_BYTES),
  )
  return file && `see ${file}`
}
