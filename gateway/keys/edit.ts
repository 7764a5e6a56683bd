/** Changes to the key file by commands; comments and order of a file that people edit too are kept. */
import {
  closeSync,
  existsSync,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsyncSync,
  lstatSync,
  openSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  writeFileSync,
} from 'node:fs'
import { dirname, resolve } from 'node:path'
import { Document, isMap, isSeq, parseDocument } from 'yaml'
import { readText } from '../../engine/config/index.js'
import { type KeyEntry, parseKeyFile, refuseModel } from './key-file.js'
import { newKey } from './secret.js'

/** A command on keys cannot be done; the message is one line for a person. */
export class KeyEditError extends Error {
  constructor(message: string) {
    super(message)
    this.name = 'KeyEditError'
  }
}

/** What a new key may do; absent = as an entry without the field. */
export type KeyRights = Partial<Omit<KeyEntry, 'id' | 'name' | 'sha256'>>

const HEADER = ' API keys by their hashes; written by "edgeshift keys". A change takes effect within a second or two.'

/** Adds a key; makes the file where there is none. Returns the key's text, which is nowhere else. Throws KeyEditError, ConfigError. */
export function createKey(file: string, modelIds: readonly string[], name: string, rights: KeyRights): string {
  for (const model of rights.models ?? []) {
    const refusal = refuseModel(model, modelIds)
    if (refusal !== undefined) throw new KeyEditError(refusal)
  }
  const { id, text, sha256 } = newKey()
  edit(file, (document) => {
    const keys = document.get('keys')
    const entry = document.createNode({ id, name, sha256, ...rights })
    if (isSeq(keys) && keys.items.length > 0) keys.add(entry)
    else document.set('keys', document.createNode([entry]))
  })
  return text
}

/** Removes the key with an id or name; returns its entry. Throws KeyEditError, ConfigError. */
export function revokeKey(file: string, idOrName: string): KeyEntry {
  const entries = parseKeyFile(readText(file), file)
  const revoked = entries.find(({ id }) => id === idOrName) ?? entries.find(({ name }) => name === idOrName)
  if (!revoked) throw new KeyEditError(`${file}: no key has the id or name "${idOrName}"`)
  edit(file, (document) => {
    const keys = document.get('keys')
    if (!isSeq(keys)) return
    keys.items = keys.items.filter((item) => !isMap(item) || item.get('id') !== revoked.id)
    // An empty block list has no form of its own.
    if (keys.items.length === 0) keys.flow = true
  })
  return revoked
}

/**
 * Rewrites the file, or the one that it links to, whole or not at all. The new file's name is the lock: two commands at
 * a time do not lose a key.
 */
function edit(named: string, change: (document: Document) => void): void {
  const file = targetOf(named)
  const next = `${file}.new`
  const descriptor = openNew(next)
  try {
    if (existsSync(file)) keepAccess(file, statSync(file), descriptor)
    const document = openDocument(file)
    change(document)
    const text = document.toString({ lineWidth: 0 })
    parseKeyFile(text, file)
    writeFileSync(descriptor, text)
    fsyncSync(descriptor)
    renameSync(next, file)
  } catch (error) {
    rmSync(next, { force: true })
    throw error
  } finally {
    closeSync(descriptor)
  }
}

/** Where the file is, or is to be: at the end of links. */
function targetOf(named: string): string {
  if (existsSync(named)) return realpathSync(named)
  const isLink = lstatSync(named, { throwIfNoEntry: false })?.isSymbolicLink() ?? false
  return isLink ? resolve(dirname(named), readlinkSync(named)) : named
}

/** Whoever could read the old file can read the new one, above all the server, which is often another user. */
function keepAccess(file: string, old: Stats, descriptor: number): void {
  try {
    const { uid, gid } = fstatSync(descriptor)
    if (uid !== old.uid || gid !== old.gid) fchownSync(descriptor, old.uid, old.gid)
    // After the owner, whose change may take bits away; openSync's mode is cut by the umask.
    fchmodSync(descriptor, old.mode & 0o777)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new KeyEditError(`${file}: its owner and mode cannot be kept (${why}); run this as its owner or as root`)
  }
}

/** Read by nobody else until it is known who may. */
function openNew(file: string): number {
  try {
    return openSync(file, 'wx', 0o600)
  } catch (error) {
    const exists = error instanceof Error && 'code' in error && error.code === 'EEXIST'
    const why = error instanceof Error ? error.message : String(error)
    throw new KeyEditError(exists ? `${file} exists: another command is at work, or was killed; then remove it` : why)
  }
}

/** The file as it is, checked, or a new one. */
function openDocument(file: string): Document {
  if (!existsSync(file)) {
    const document = new Document({ keys: [] })
    document.commentBefore = HEADER
    return document
  }
  const text = readText(file)
  parseKeyFile(text, file)
  return parseDocument(text)
}
