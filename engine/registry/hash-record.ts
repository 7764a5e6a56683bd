/** Hashes of a model's files, written beside it by `edgeshift verify --record`, or by sha256sum. */
import { randomBytes } from 'node:crypto'
import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { readSmallFile } from './json-file.js'
import type { Located } from './locate.js'
import { invalidFile } from './model-file-error.js'

const MAX_BYTES = 2 ** 20
const LINE = /^([0-9a-f]{64}) [ *](.+)$/

/** Where the record of a model is: SHA256SUMS in its folder, or beside a .gguf under its name. */
export function recordFileOf(located: Located): string {
  return located.format === 'gguf' ? `${located.file}.sha256` : join(located.folder, 'SHA256SUMS')
}

/**
 * SHA-256 by name of the files beside a record; undefined where there is none. Names with a folder in them are left
 * out: nothing is read from there. Throws ModelFileError.
 */
export function readHashRecord(file: string): ReadonlyMap<string, string> | undefined {
  const text = readSmallFile(file, MAX_BYTES)?.toString('utf8')
  if (text === undefined) return undefined
  const hashes = new Map<string, string>()
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line === '') continue
    const [, hash, path] = LINE.exec(line) ?? []
    if (hash === undefined || path === undefined)
      throw invalidFile(file, `line ${index + 1} is not a SHA-256 and a file name, as sha256sum writes them`)
    const name = path.replace(/^\.\//, '')
    if (!/[/\\\0]/.test(name) && name !== '.' && name !== '..') hashes.set(name, hash)
  }
  return hashes
}

/** Replaces a record whole, on the disk before it takes the old one's place. Throws the system's error. */
export function writeHashRecord(file: string, hashes: ReadonlyMap<string, string>): void {
  const lines = [...hashes].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([name, hash]) => `${hash}  ${name}\n`)
  const partial = `${file}.${randomBytes(6).toString('hex')}`
  const descriptor = openSync(partial, 'wx')
  try {
    try {
      writeSync(descriptor, lines.join(''))
      fsyncSync(descriptor)
    } finally {
      closeSync(descriptor)
    }
    renameSync(partial, file)
  } catch (error) {
    rmSync(partial, { force: true })
    throw error
  }
}
