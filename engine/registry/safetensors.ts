/**
 * The safetensors container: eight bytes of header length, a JSON header, then the tensors back to back.
 * Format: https://huggingface.co/docs/safetensors. Every number is checked against the file before it is used.
 */
import { z } from 'zod'
import type { TensorInfo } from '../native.js'
import { parseJsonObject, readRange, regularFileBytes } from './json-file.js'
import { invalidFile } from './model-file-error.js'

/** A parsed header; tensors are in file order and cover the data without holes. */
export interface SafetensorsFile {
  metadata: Record<string, string>
  tensors: TensorInfo[]
}

/** The official reader's own bound. */
const MAX_HEADER_BYTES = 100_000_000
const MAX_TENSORS = 1_000_000

/** Bytes of one element by the format's type name. */
const ELEMENT_BYTES: Readonly<Record<string, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
}

const size = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER)
const entrySchema = z.strictObject({
  dtype: z.string(),
  shape: z.array(size).max(8),
  data_offsets: z.tuple([size, size]),
})
const metadataSchema = z.record(z.string(), z.string())

/** Reads and checks the header of a safetensors file. Throws ModelFileError, or the system's error when unreadable. */
export function readSafetensors(path: string): SafetensorsFile {
  const fileBytes = regularFileBytes(path)
  if (fileBytes === undefined) throw invalidFile(path, 'no such file')
  const headerBytes = headerLength(path, readRange(path, 0, Math.min(8, fileBytes)), fileBytes)
  return parseSafetensors(path, readRange(path, 8, headerBytes), fileBytes)
}

function headerLength(path: string, prefix: Buffer, fileBytes: number): number {
  if (prefix.length < 8) throw invalidFile(path, `${fileBytes} bytes is too short for a safetensors file`)
  const length = prefix.readBigUInt64LE(0)
  if (length > MAX_HEADER_BYTES) throw invalidFile(path, `header length ${length} exceeds ${MAX_HEADER_BYTES}`)
  if (Number(length) > fileBytes - 8) {
    throw invalidFile(path, `header length ${length} exceeds the file's ${fileBytes} bytes`)
  }
  return Number(length)
}

/** Checks a header (the JSON bytes) against the size of the whole file. Throws ModelFileError. */
export function parseSafetensors(path: string, header: Uint8Array, fileBytes: number): SafetensorsFile {
  const dataStart = 8 + header.length
  const entries = Object.entries(parseJsonObject(path, header, 'the header'))
  if (entries.length > MAX_TENSORS) throw invalidFile(path, `${entries.length} tensors exceed ${MAX_TENSORS}`)
  const metadata = metadataSchema.safeParse(entries.find(([name]) => name === '__metadata__')?.[1] ?? {})
  if (!metadata.success) throw invalidFile(path, '__metadata__ must map strings to strings')
  const tensors = entries
    .filter(([name]) => name !== '__metadata__')
    .map(([name, entry]) => tensorInfo(path, name, entry, dataStart, fileBytes))
    .toSorted((a, b) => a.offset - b.offset || a.bytes - b.bytes)
  checkCoverage(path, tensors, dataStart, fileBytes)
  return { metadata: metadata.data, tensors }
}

function tensorInfo(path: string, name: string, value: unknown, dataStart: number, fileBytes: number): TensorInfo {
  const where = `tensor ${JSON.stringify(name.slice(0, 200))}`
  const parsed = entrySchema.safeParse(value)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    throw invalidFile(path, `${where}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'invalid'}`)
  }
  const { dtype, shape, data_offsets } = parsed.data
  const elementBytes = Object.hasOwn(ELEMENT_BYTES, dtype) ? ELEMENT_BYTES[dtype] : undefined
  if (elementBytes === undefined) throw invalidFile(path, `${where}: unknown dtype ${dtype.slice(0, 40)}`)
  const [begin, end] = data_offsets
  if (end < begin) throw invalidFile(path, `${where}: ends at ${end} before it begins at ${begin}`)
  if (end > fileBytes - dataStart) {
    throw invalidFile(path, `${where}: ends at ${end}, past the ${fileBytes - dataStart} bytes of data`)
  }
  const bytes = shape.reduce((product, dim) => product * BigInt(dim), BigInt(elementBytes))
  if (bytes !== BigInt(end - begin)) {
    throw invalidFile(path, `${where}: ${dtype} [${shape.join(', ')}] takes ${bytes} bytes, not ${end - begin}`)
  }
  return { name, type: dtype.toLowerCase(), shape, offset: dataStart + begin, bytes: end - begin }
}

// As the official reader: no overlap, no hole, nothing after the last tensor (also finds keys written twice).
function checkCoverage(path: string, tensors: readonly TensorInfo[], dataStart: number, fileBytes: number): void {
  let next = dataStart
  for (const { name, offset, bytes } of tensors) {
    if (offset !== next) {
      const what = offset < next ? 'overlaps the tensor before it' : `leaves ${offset - next} bytes unused before it`
      throw invalidFile(path, `tensor ${JSON.stringify(name.slice(0, 200))}: ${what}`)
    }
    next += bytes
  }
  if (next !== fileBytes) throw invalidFile(path, `${fileBytes - next} bytes after the last tensor`)
}
