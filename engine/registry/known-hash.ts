/** What a hub said of a file when it was downloaded. */
import { readFileSync, readlinkSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

const HASH = /^(?:[0-9a-f]{64}|[0-9a-f]{40})$/

/**
 * The hash that the hub gave: in the download's metadata (second line), or the name of the blob that a link of the
 * hub's cache points to. 64 hex digits are a SHA-256, 40 a git object. Undefined where nobody wrote it down.
 */
export function knownHash(file: string): string | undefined {
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
