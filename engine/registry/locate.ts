/** Which files a path of models.yaml means. */
import { readdirSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { z } from 'zod'
import { checkShape, readJsonObject, regularFileBytes } from './json-file.js'
import { invalidFile, unsupported } from './model-file-error.js'

const INDEX = 'model.safetensors.index.json'
const SINGLE = 'model.safetensors'
const MAX_INDEX_BYTES = 64 * 2 ** 20
const MAX_SHARDS = 4096

// A plain file name: no folder, no drive, no URL, no control character, not hidden.
const SHARD_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors$/
const shardName = z.string().max(255).regex(SHARD_NAME, 'expected the name of a .safetensors file beside the index')
const indexSchema = z.looseObject({ weight_map: z.record(z.string(), shardName) })

/** A model's files: one GGUF, or the safetensors files of a folder with its other files. */
export type Located =
  | { format: 'gguf'; file: string }
  | { format: 'safetensors'; folder: string; files: string[]; index: ShardIndex | undefined }

/** model.safetensors.index.json: tensor name -> place of its file in `Located.files`. */
export interface ShardIndex {
  file: string
  places: ReadonlyMap<string, number>
}

/**
 * Finds the files of a .gguf, a .safetensors (with its folder's config.json) or a folder. Shards are looked for in the
 * folder only; a symbolic link in it is followed, as the hub's cache needs. Throws ModelFileError.
 */
export function locateModel(path: string): Located {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined && !path.endsWith('.gguf')) throw invalidFile(path, 'no such file or folder')
  if (stat?.isDirectory()) return locateFolder(path)
  if (path.endsWith('.safetensors')) return safetensors(dirname(path), [path])
  return { format: 'gguf', file: path }
}

function safetensors(folder: string, files: string[], index?: ShardIndex): Located {
  return { format: 'safetensors', folder, files, index }
}

// The order of transformers: one file, then an index; other names only where nothing else can be meant.
function locateFolder(folder: string): Located {
  if (regularFileBytes(join(folder, SINGLE)) !== undefined) return safetensors(folder, [join(folder, SINGLE)])
  const indexFile = join(folder, INDEX)
  const index = readJsonObject(indexFile, MAX_INDEX_BYTES)
  if (index) return locateShards(folder, indexFile, index)
  const names = readdirSync(folder)
  const candidates = [
    ...names.filter((name) => name.endsWith('.safetensors') && !/^(adapter|consolidated)/.test(name)),
    ...names.filter((name) => name.endsWith('.gguf')),
  ]
  const [only, ...more] = candidates
  if (only !== undefined && more.length === 0) return locateModel(join(folder, only))
  if (only !== undefined)
    throw unsupported(folder, `several model files and no index: name one of ${candidates.slice(0, 8).join(', ')}`)
  const pickled = names.find((name) => /\.(bin|pt|pth)$/.test(name))
  if (pickled) throw unsupported(folder, `${pickled} is not supported (.safetensors and .gguf are)`)
  throw invalidFile(folder, `no ${SINGLE}, ${INDEX} or .gguf in it`)
}

/** The shards that an index names, in order, and the place of each tensor's among them. Throws ModelFileError. */
export function readShardMap(file: string, value: Record<string, unknown>): { names: string[]; index: ShardIndex } {
  const { weight_map: map } = checkShape(indexSchema, value, file)
  const names = [...new Set(Object.values(map))].toSorted()
  if (names.length === 0) throw invalidFile(file, 'weight_map is empty')
  if (names.length > MAX_SHARDS)
    throw invalidFile(file, `weight_map names ${names.length} files, more than ${MAX_SHARDS}`)
  const order = new Map(names.map((name, place) => [name, place]))
  const places = new Map(Object.entries(map).map(([tensor, name]) => [tensor, order.get(name) ?? 0]))
  return { names, index: { file, places } }
}

function locateShards(folder: string, file: string, value: Record<string, unknown>): Located {
  const { names, index } = readShardMap(file, value)
  for (const name of names) {
    if (regularFileBytes(join(folder, name)) === undefined) throw invalidFile(file, `${name} is missing`)
  }
  return safetensors(
    folder,
    names.map((name) => join(folder, name)),
    index,
  )
}

/** A name for people: of the folder, or of the file. */
export function nameOf(path: string): string {
  return basename(path).slice(0, 200)
}
