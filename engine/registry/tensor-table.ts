/** The tensors of a model's safetensors files by name. */
import { type Located, nameOf, type ShardIndex } from './locate.js'
import { invalidFile } from './model-file-error.js'
import { readSafetensors } from './safetensors.js'
import type { TensorRef } from './stored-weight.js'

/** Tensors of all shards, and what the files' headers say of themselves. */
export interface TensorTable {
  tensors: ReadonlyMap<string, TensorRef>
  metadata: Record<string, string>
}

/** Reads every header. Throws ModelFileError where shards and index disagree. */
export function readTensorTable({ files, index }: Extract<Located, { format: 'safetensors' }>): TensorTable {
  const tensors = new Map<string, TensorRef>()
  const metadata: Record<string, string> = {}
  for (const [file, path] of files.entries()) {
    const shard = readSafetensors(path)
    Object.assign(metadata, shard.metadata)
    for (const { name, ...place } of shard.tensors) {
      if (tensors.has(name)) throw invalidFile(path, `tensor ${short(name)} is in another file of the model too`)
      tensors.set(name, { file, ...place })
    }
  }
  if (index) checkIndex(index, files, tensors)
  return { tensors, metadata }
}

function checkIndex({ file, places }: ShardIndex, files: readonly string[], tensors: TensorTable['tensors']): void {
  for (const [name, place] of places) {
    if (tensors.get(name)?.file !== place)
      throw invalidFile(file, `tensor ${short(name)} is not in ${nameOf(files[place] ?? '')}`)
  }
}

function short(name: string): string {
  return JSON.stringify(name.slice(0, 200))
}
