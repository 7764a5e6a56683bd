/** Reads every byte of one file once: its hashes, and the largest float of each tensor in it. */
import { createHash, type Hash } from 'node:crypto'
import { statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { finiteCheck } from './finite.js'

const PIECE_BYTES = 4 * 2 ** 20

/** A tensor as the files' headers have it. */
export interface NamedTensor {
  name: string
  type: string
  file: number
  offset: number
  bytes: number
}

/** What a tensor with floats holds: the largest magnitude, NaN and infinity included. */
export interface TensorRange {
  name: string
  type: string
  magnitude: number
}

/** A file's content. `git`: its name as a git object, where that was asked for. */
export interface FileContent {
  bytes: number
  sha256: string
  git: string | undefined
  tensors: TensorRange[]
}

/** `tensors`: those inside the file, by offset. Rejects where it ends before their end. */
export async function readFileContent(
  file: string,
  tensors: readonly NamedTensor[],
  asGit: boolean,
  advance: (bytes: number) => void,
): Promise<FileContent> {
  const { size } = statSync(file)
  const sha256 = createHash('sha256')
  const git = asGit ? createHash('sha1').update(`blob ${size}\0`) : undefined
  const hashes = git ? [sha256, git] : [sha256]
  const ranges: TensorRange[] = []
  const handle = await open(file)
  try {
    let at = 0
    for (const tensor of tensors) {
      await readBytes(handle, at, tensor.offset - at, 1, hashes, advance)
      const magnitude = await readTensor(handle, tensor, hashes, advance)
      if (magnitude !== undefined) ranges.push({ name: tensor.name, type: tensor.type, magnitude })
      at = tensor.offset + tensor.bytes
    }
    await readBytes(handle, at, size - at, 1, hashes, advance)
  } finally {
    await handle.close()
  }
  return { bytes: size, sha256: sha256.digest('hex'), git: git?.digest('hex'), tensors: ranges }
}

type Handle = Awaited<ReturnType<typeof open>>

/** The largest magnitude; undefined for types without floats. */
async function readTensor(
  handle: Handle,
  { type, offset, bytes }: NamedTensor,
  hashes: readonly Hash[],
  advance: (bytes: number) => void,
): Promise<number | undefined> {
  const check = finiteCheck(type)
  let largest = 0
  await readBytes(handle, offset, bytes, check?.unit ?? 1, hashes, advance, (piece) => {
    // Math.max keeps a NaN.
    largest = Math.max(largest, check?.largest(piece) ?? 0)
  })
  return check && largest
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
