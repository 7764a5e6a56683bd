/** What `edgeshift verify` does: reads every byte of a model once, hashes it and looks at every float. */
import { type Dirent, readdirSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import type { GgufFile } from '../native.js'
import {
  type KnownHash,
  knownHashes,
  locateModel,
  type Located,
  readHashRecord,
  readTensorTable,
  recordFileOf,
  writeHashRecord,
} from '../registry/index.js'
import { type NamedTensor, readFileContent, type TensorRange } from './verify-file.js'

/** One file's result. `known`: what the hub and the record say of it; `isNew`: there is a record, without the file. */
export interface FileReport {
  file: string
  bytes: number
  sha256: string
  known: (KnownHash & { matches: boolean })[]
  isNew: boolean
}

/** The whole result. */
export interface Verification {
  files: FileReport[]
  /** Where the record is, or would be. */
  recordFile: string
  /** Tensors whose values or scales were looked at. */
  tensors: number
  /** The largest magnitude and where it is. */
  largest: { tensor: string; magnitude: number } | undefined
  /** What makes the files unfit: not as the hub had them, or values that are not finite. */
  problems: string[]
  /** What is not as recorded: other content, missing, new. */
  changes: string[]
}

/** Called with bytes read so far and in all. */
export type Progress = (done: number, total: number) => void

/**
 * Verifies the model at a path. `recordFile` in place of the one beside the model. Throws what locating it, and reading
 * its headers and its record, throw.
 */
export async function verifyModel(
  path: string,
  readGguf: (path: string) => GgufFile,
  progress: Progress,
  recordFile?: string,
): Promise<Verification> {
  const located = locateModel(path)
  const weightFiles = located.format === 'gguf' ? [located.file] : located.files
  const result: Verification = {
    files: [],
    recordFile: recordFile ?? recordFileOf(located),
    tensors: 0,
    largest: undefined,
    problems: [],
    changes: [],
  }
  const record = readHashRecord(result.recordFile)
  const tensors = tensorsOf(located, readGguf)
  const files = [...weightFiles, ...otherFiles(located, weightFiles, record)]
  result.changes.push(...missingFiles(files, record, folderOf(located)))
  const total = files.reduce((sum, file) => sum + statSync(file).size, 0)
  let done = 0
  for (const [index, file] of files.entries()) {
    const known = knownHashes(file, record)
    const inFile = tensors.filter((tensor) => tensor.file === index).toSorted((a, b) => a.offset - b.offset)
    const asGit = known.some(({ hash }) => hash.length === 40)
    const content = await readFileContent(file, inFile, asGit, (bytes) => progress((done += bytes), total))
    const { bytes, sha256, git } = content
    const compared = known.map(({ hash, from }) => ({ hash, from, matches: [sha256, git].includes(hash) }))
    const report = { file, bytes, sha256, known: compared, isNew: record !== undefined && !record.has(basename(file)) }
    result.files.push(report)
    note(report, content.tensors, result)
  }
  return result
}

/** Writes down the hashes of what was verified. Throws the system's error. */
export function recordHashes({ recordFile, files }: Verification): void {
  writeHashRecord(recordFile, new Map(files.map(({ file, sha256 }) => [basename(file), sha256])))
}

/** Adds one file to the result. */
function note({ file, known, isNew }: FileReport, tensors: readonly TensorRange[], result: Verification): void {
  for (const { hash, from } of known.filter(({ matches }) => !matches)) {
    if (from === 'hub') result.problems.push(`${file}: its hash is not the one it was downloaded with (${hash})`)
    else result.changes.push(`${file}: its content is not what was recorded (${hash})`)
  }
  if (isNew) result.changes.push(`${file}: is not in the record`)
  for (const { name, type, magnitude } of tensors) {
    result.tensors++
    if (!Number.isFinite(magnitude)) {
      const what = Number.isNaN(magnitude) ? 'NaN' : 'an infinity'
      result.problems.push(`tensor ${JSON.stringify(name.slice(0, 200))} (${type}) holds ${what}`)
    } else if (magnitude > (result.largest?.magnitude ?? -1)) result.largest = { tensor: name, magnitude }
  }
}

function folderOf(located: Located): string {
  return located.format === 'gguf' ? dirname(located.file) : located.folder
}

function tensorsOf(located: Located, readGguf: (path: string) => GgufFile): NamedTensor[] {
  if (located.format === 'gguf') return readGguf(located.file).tensors.map((tensor) => named(tensor.name, 0, tensor))
  return [...readTensorTable(located).tensors].map(([name, ref]) => named(name, ref.file, ref))
}

function named(name: string, file: number, place: Pick<NamedTensor, 'type' | 'offset' | 'bytes'>): NamedTensor {
  const { type, offset, bytes } = place
  return { name, type, file, offset, bytes }
}

function isSmallFile(entry: Dirent): boolean {
  return !entry.isDirectory() && /\.(json|jinja)$/.test(entry.name)
}

/** The small files beside safetensors that are read, and those of the record; regular ones. */
function otherFiles(
  located: Located,
  weightFiles: readonly string[],
  record: ReadonlyMap<string, string> | undefined,
): string[] {
  const folder = folderOf(located)
  const beside = located.format === 'gguf' ? [] : readdirSync(folder, { withFileTypes: true }).filter(isSmallFile)
  const names = new Set([...beside.map(({ name }) => name), ...(record?.keys() ?? [])])
  return [...names]
    .map((name) => join(folder, name))
    .filter((file) => !weightFiles.includes(file) && statSync(file, { throwIfNoEntry: false })?.isFile())
    .toSorted()
}

function missingFiles(
  files: readonly string[],
  record: ReadonlyMap<string, string> | undefined,
  folder: string,
): string[] {
  const present = new Set(files.map((file) => basename(file)))
  const missing = [...(record?.keys() ?? [])].filter((name) => !present.has(name))
  return missing.map((name) => `${join(folder, name)}: is in the record and missing`)
}
