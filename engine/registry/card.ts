import { closeSync, openSync, readSync } from 'node:fs'
import { basename } from 'node:path'
import type { GgufFile, ModelSpec, WeightSource } from '../native.js'
import { readLlama } from './llama.js'
import { Metadata } from './metadata.js'
import { generationConfig, type GgufTokenizer, readTokenizer, tokenizerConfig, tokenizerJson } from './tokenizer.js'

/** What is known of a model file without loading it. */
export interface ModelCard {
  file: string
  /** From the file's metadata; its name where that has none. For people only: it identifies nothing. */
  name: string
  architecture: string
  licence: string | undefined
  /** Weights in all. */
  parameters: number
  /** Longest sequence the model was made for, tokens. */
  contextLength: number
  spec: ModelSpec
  weights: WeightSource[]
  tokenizer: GgufTokenizer
}

/** One file for the gateway's text layer. */
export interface ModelAsset {
  name: string
  data: Uint8Array
}

/**
 * Describes a GGUF file; `readGguf` is the addon's. Throws ModelFileError for a file that is not served, before
 * memory is taken for it, and the addon's NativeError for one that is no GGUF.
 */
export function readModelCard(file: string, readGguf: (path: string) => GgufFile): ModelCard {
  const gguf = readGguf(file)
  const metadata = new Metadata(file, gguf.metadata)
  const architecture = metadata.requiredText('general.architecture')
  if (architecture !== 'llama')
    throw metadata.unsupported(`architecture ${JSON.stringify(architecture.slice(0, 40))} is not supported (llama is)`)
  const { spec, weights, contextLength } = readLlama(gguf, metadata, (offset, count) => readFloats(file, offset, count))
  return {
    file,
    name: metadata.text('general.name')?.slice(0, 200) ?? basename(file),
    architecture,
    licence: metadata.text('general.license')?.slice(0, 200),
    parameters: weights.reduce((sum, { shape }) => sum + elements(shape), 0),
    contextLength,
    spec,
    weights,
    tokenizer: readTokenizer(metadata, spec.vocabSize),
  }
}

/** The files that the gateway builds a model's tokenizer, chat template and stop tokens from. */
export function modelAssets({
  tokenizer,
  contextLength,
}: Pick<ModelCard, 'tokenizer' | 'contextLength'>): ModelAsset[] {
  const template = tokenizer.chatTemplate
  return [
    json('tokenizer.json', tokenizerJson(tokenizer)),
    json('tokenizer_config.json', tokenizerConfig(tokenizer, contextLength)),
    json('generation_config.json', generationConfig(tokenizer)),
    ...(template === undefined ? [] : [{ name: 'chat_template.jinja', data: Buffer.from(template) }]),
  ]
}

function json(name: string, value: object): ModelAsset {
  return { name, data: Buffer.from(JSON.stringify(value)) }
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1)
}

/** Reads little-endian floats; throws the system's error, or RangeError where the file ends before. */
function readFloats(file: string, offset: number, count: number): Float32Array {
  const bytes = Buffer.alloc(count * 4)
  const descriptor = openSync(file, 'r')
  try {
    if (readSync(descriptor, bytes, 0, bytes.length, offset) !== bytes.length)
      throw new RangeError(`${file} ends before byte ${offset + bytes.length}`)
  } finally {
    closeSync(descriptor)
  }
  return Float32Array.from({ length: count }, (_, index) => bytes.readFloatLE(index * 4))
}
