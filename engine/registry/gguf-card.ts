/** The card of a GGUF file. */
import type { GgufFile } from '../native.js'
import { readGgufModel } from './gguf-model.js'
import { recordFileOf } from './hash-record.js'
import { readRange } from './json-file.js'
import { nameOf } from './locate.js'
import { Metadata } from './metadata.js'
import type { ModelCard } from './model-card.js'
import { readBeside } from './notices.js'
import { elementsOf } from './stored-weight.js'
import { ggufText, readTokenizer } from './tokenizer.js'
import { storedPrecision } from './width.js'

/** Checks what the file's header says. Throws ModelFileError. */
export function readGgufCard(file: string, gguf: GgufFile): ModelCard {
  const metadata = new Metadata(file, gguf.metadata)
  const architecture = metadata.requiredText('general.architecture')
  const model = readGgufModel(gguf, metadata, architecture, (offset, count) => readFloats(file, offset, count))
  const { spec, weights, contextLength } = model
  const tokenizer = readTokenizer(metadata, spec.vocabSize)
  return {
    path: file,
    format: 'gguf',
    files: [file],
    name: metadata.text('general.name')?.slice(0, 200) ?? nameOf(file),
    architecture,
    licence: metadata.text('general.license')?.slice(0, 200),
    parameters: weights.reduce((sum, weight) => sum + elementsOf(weight), 0),
    contextLength,
    spec,
    weights,
    precision: storedPrecision(weights),
    ...readBeside([file], recordFileOf({ format: 'gguf', file }), weights),
    readText: () => ggufText(tokenizer, contextLength),
  }
}

/** Reads little-endian floats; throws the system's error, or ModelFileError where the file ends before. */
function readFloats(file: string, offset: number, count: number): Float32Array {
  const bytes = readRange(file, offset, count * 4)
  return Float32Array.from({ length: count }, (_, index) => bytes.readFloatLE(index * 4))
}
