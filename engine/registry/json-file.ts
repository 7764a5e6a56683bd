/** JSON files of a checkpoint: bounded in size and nesting before anything is parsed. */
import { closeSync, openSync, readSync, statSync } from 'node:fs'
import { z } from 'zod'
import { invalidFile } from './model-file-error.js'

const MAX_DEPTH = 64
const QUOTE = 0x22
const BACKSLASH = 0x5c

/** Size of a regular file in bytes (symbolic links are followed); undefined when there is none. Throws ModelFileError. */
export function regularFileBytes(file: string): number | undefined {
  const stat = statSync(file, { throwIfNoEntry: false })
  // Checked before it is opened: opening a pipe would wait for its writer.
  if (stat !== undefined && !stat.isFile()) throw invalidFile(file, 'is not a regular file')
  return stat?.size
}

/** Bytes [offset, offset + bytes) of a file. Throws ModelFileError where it ends before, or the system's error. */
export function readRange(file: string, offset: number, bytes: number): Buffer {
  const buffer = Buffer.alloc(bytes)
  const descriptor = openSync(file, 'r')
  try {
    if (readSync(descriptor, buffer, 0, bytes, offset) === bytes) return buffer
  } finally {
    closeSync(descriptor)
  }
  throw invalidFile(file, `ends before byte ${offset + bytes}`)
}

/** Bytes of a regular file of at most `maxBytes`; undefined when there is none. Throws ModelFileError. */
export function readSmallFile(file: string, maxBytes: number): Buffer | undefined {
  const size = regularFileBytes(file)
  if (size === undefined) return undefined
  if (size > maxBytes) throw invalidFile(file, `has ${size} bytes; at most ${maxBytes} are read`)
  return readRange(file, 0, size)
}

/** The object in a JSON file; undefined when there is no such file. Throws ModelFileError. */
export function readJsonObject(file: string, maxBytes: number): Record<string, unknown> | undefined {
  const bytes = readSmallFile(file, maxBytes)
  return bytes && parseJsonObject(file, bytes)
}

/** Parses UTF-8 JSON that must be an object; `what` names it in messages. Throws ModelFileError. */
export function parseJsonObject(file: string, bytes: Uint8Array, what = 'the file'): Record<string, unknown> {
  if (nestedTooDeep(bytes)) throw invalidFile(file, `${what} is nested more than ${MAX_DEPTH} deep`)
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw invalidFile(file, `${what} is not JSON: ${error instanceof Error ? error.message.slice(0, 200) : ''}`)
  }
  if (!isObject(value)) throw invalidFile(file, `${what} is not a JSON object`)
  return value
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function nestedTooDeep(bytes: Uint8Array): boolean {
  let depth = 0
  let inString = false
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]
    if (inString) {
      if (byte === BACKSLASH) i++
      else if (byte === QUOTE) inString = false
    } else if (byte === QUOTE) inString = true
    else if (byte === 0x5b || byte === 0x7b) {
      if (++depth > MAX_DEPTH) return true
    } else if (byte === 0x5d || byte === 0x7d) depth--
  }
  return false
}

/** `value` as the schema wants it. Throws ModelFileError with the field's path and the reason. */
export function checkShape<T>(schema: z.ZodType<T>, value: unknown, file: string, section = ''): T {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  const place = [section, ...(issue?.path ?? [])].filter((part) => part !== '').join('.')
  throw invalidFile(file, `${place.slice(0, 200)}: ${issue?.message ?? 'invalid'}`)
}
