/** What `edgeshift verify` does: reads every byte of a model once, hashes it and looks at every float. */
import { createHash, type Hash } from 'node:crypto'
import { type Dirent, readdirSync, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import type { GgufFile } from '../native.js'
import { knownHash, locateModel, type Located, readTensorTable } from '../registry/index.js'
import { finiteCheck } from './finite.js'

const PIECE_BYTES = 4 * 2 ** 20

/** A tensor as the files' headers have it. */
interface NamedTensor {
  name: string
  type: string
  file: number
  offset: number
  bytes: number
}

/** One file's result. `expected`: what the hub said when it was downloaded. */
export interface FileReport {
  file: string
  bytes: number
  sha256: string
  expected: string | undefined
  matches: boolean | undefined
}

/** The whole result; `problems` is empty when all is well. */
export interface Verification {
  files: FileReport[]
  /** Tensors whose values or scales were looked at. */
  tensors: number
  /** The largest magnitude and where it is. */
  largest: { tensor: string; magnitude: number } | undefined
  problems: string[]
}

/** Called with bytes read so far and in all. */
export type Progress = (done: number, total: number) => void

/** Verifies the model at a path. Throws what locating it and reading its headers throw. */
export async function verifyModel(
  path: string,
  readGguf: (path: string) => GgufFile,
  progress: Progress,
): Promise<Verification> {
  const located = locateModel(path)
  const weightFiles = located.format === 'gguf' ? [located.file] : located.files
  const tensors = tensorsOf(located, readGguf)
  const others = located.format === 'gguf' ? [] : otherFiles(located.folder, weightFiles)
  const files = [...weightFiles, ...others]
  const total = files.reduce((sum, file) => sum + statSync(file).size, 0)
  const result: Verification = { files: [], tensors: 0, largest: undefined, problems: [] }
  let done = 0
  for (const [index, file] of files.entries()) {
    const inFile = tensors.filter((tensor) => tensor.file === index).toSorted((a, b) => a.offset - b.offset)
    const report = await verifyFile(file, inFile, result, (bytes) => progress((done += bytes), total))
    result.files.push(report)
    if (report.matches === false)
      result.problems.push(`${file}: its hash is not the one it was downloaded with (${report.expected})`)
  }
  return result
}

function tensorsOf(located: Located, readGguf: (path: string) => GgufFile): NamedTensor[] {
  if (located.format === 'gguf') return readGguf(located.file).tensors.map((tensor) => named(tensor.name, 0, tensor))
  return [...readTensorTable(located).tensors].map(([name, ref]) => named(name, ref.file, ref))
}

function named(name: string, file: number, place: Pick<NamedTensor, 'type' | 'offset' | 'bytes'>): NamedTensor {
  const { type, offset, bytes } = place
  return { name, type, file, offset, bytes }
}

/** The small files beside the weights: those that are read, as regular files. */
function otherFiles(folder: string, weightFiles: readonly string[]): string[] {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry: Dirent) => !entry.isDirectory() && /\.(json|jinja)$/.test(entry.name))
    .map(({ name }) => join(folder, name))
    .filter((file) => !weightFiles.includes(file) && statSync(file, { throwIfNoEntry: false })?.isFile())
    .toSorted()
}

async function verifyFile(
  file: string,
  tensors: readonly NamedTensor[],
  result: Verification,
  advance: (bytes: number) => void,
): Promise<FileReport> {
  const sha256 = createHash('sha256')
  const expected = knownHash(file)
  const { size } = statSync(file)
  // The hub names files that are not in its large-file store by their git object.
  const git = expected?.length === 40 ? createHash('sha1').update(`blob ${size}\0`) : undefined
  const hashes = git ? [sha256, git] : [sha256]
  const handle = await open(file)
  try {
    let at = 0
    for (const tensor of tensors) {
      await readBytes(handle, at, tensor.offset - at, 1, hashes, advance)
      await verifyTensor(handle, tensor, hashes, result, advance)
      at = tensor.offset + tensor.bytes
    }
    await readBytes(handle, at, size - at, 1, hashes, advance)
  } finally {
    await handle.close()
  }
  const digest = sha256.digest('hex')
  const matches = expected === undefined ? undefined : expected === (git ? git.digest('hex') : digest)
  return { file, bytes: size, sha256: digest, expected, matches }
}

type Handle = Awaited<ReturnType<typeof open>>

async function verifyTensor(
  handle: Handle,
  { name, type, offset, bytes }: NamedTensor,
  hashes: readonly Hash[],
  result: Verification,
  advance: (bytes: number) => void,
): Promise<void> {
  const check = finiteCheck(type)
  let largest = 0
  await readBytes(handle, offset, bytes, check?.unit ?? 1, hashes, advance, (piece) => {
    // Math.max keeps a NaN.
    largest = Math.max(largest, check?.largest(piece) ?? 0)
  })
  if (!check) return
  result.tensors++
  if (!Number.isFinite(largest)) {
    const what = Number.isNaN(largest) ? 'NaN' : 'an infinity'
    result.problems.push(`tensor ${JSON.stringify(name.slice(0, 200))} (${type}) holds ${what}`)
  } else if (largest > (result.largest?.magnitude ?? -1)) result.largest = { tensor: name, magnitude: largest }
}

/** Reads a range in pieces of whole units, hashes and hands each on. Rejects where the file ends before. */
async function readBytes(
  handle: Handle,
  offset: number,
  bytes: number,
  unit: number,
  hashes: readonly Hash[],
  advance: (bytes: number) => void,
  onPiece?: (piece: Buffer) => void,
): Promise<void> {
  const buffer = Buffer.allocUnsafe(Math.min(bytes, Math.floor(PIECE_BYTES / unit) * unit))
  for (let done = 0; done < bytes;) {
    const wanted = Math.min(buffer.length, bytes - done)
    const piece = buffer.subarray(0, wanted)
    await fill(handle, piece, offset + done)
    for (const hash of hashes) hash.update(piece)
    onPiece?.(piece)
    done += wanted
    advance(wanted)
  }
}

async function fill(handle: Handle, piece: Buffer, position: number): Promise<void> {
  for (let filled = 0; filled < piece.length;) {
    const { bytesRead } = await handle.read(piece, filled, piece.length - filled, position + filled)
    if (bytesRead === 0) throw new Error(`the file ends at byte ${position + filled}`)
    filled += bytesRead
  }
}
