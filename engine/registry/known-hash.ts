/** What others have said of a file's content: a hub when it was downloaded, or the record beside the model. */
import { readFileSync, readlinkSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

/** 64 hex digits are a SHA-256, 40 a git object, by which a hub names files that are not in its large-file store. */
export interface KnownHash {
  hash: string
  from: 'hub' | 'record'
}

const HASH = /^(?:[0-9a-f]{64}|[0-9a-f]{40})$/

/**
 * The hash that the hub gave: in the download's metadata (second line), or the name of the blob that a link of the
 * hub's cache points to. Undefined where nobody wrote it down.
 */
function hubHash(file: string): string | undefined {
  const metadata = join(dirname(file), '.cache', 'huggingface', 'download', `${basename(file)}.metadata`)
  const candidates = [() => readFileSync(metadata, 'utf8').split('\n')[1]?.trim(), () => basename(readlinkSync(file))]
  for (const candidate of candidates) {
    try {
      const found = candidate()
      if (found !== undefined && HASH.test(found)) return found
    } catch {
      // Neither has to exist.
    }
  }
  return undefined
}

/** All that is known of a file's content, the hub's word first. `record`: as readHashRecord() gives it. */
export function knownHashes(file: string, record: ReadonlyMap<string, string> | undefined): KnownHash[] {
  const hub = hubHash(file)
  const recorded = record?.get(basename(file))
  return [
    ...(hub === undefined ? [] : [{ hash: hub, from: 'hub' } as const]),
    ...(recorded === undefined ? [] : [{ hash: recorded, from: 'record' } as const]),
  ]
}
