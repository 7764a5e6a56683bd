/** Follows the key file. */
import { unwatchFile, watchFile } from 'node:fs'
import type { Logger } from 'pino'
import { readText } from '../../engine/config/index.js'
import type { KeyedAccess } from './access.js'
import { type KeyEntry, parseKeyFile } from './key-file.js'

/** How soon a change is seen. Looking at times sees every way of replacing a file, on every file system. */
const POLL_MS = 1000

/** Reads and checks a key file. Throws ConfigError. */
export function loadKeyFile(file: string, modelIds: readonly string[]): KeyEntry[] {
  return parseKeyFile(readText(file), file, modelIds)
}

/**
 * Gives `access` the keys of the file whenever it changes; a bad edit is logged and the old keys stay. `modelIds` are
 * those of the moment. Returns what ends it.
 */
export function followKeyFile(
  file: string,
  modelIds: () => readonly string[],
  access: KeyedAccess,
  log: Logger,
  pollMs = POLL_MS,
): () => void {
  const reload = (): void => {
    try {
      const entries = loadKeyFile(file, modelIds())
      access.use(entries)
      log.info({ keys: entries.length }, 'API keys read again')
    } catch (error) {
      log.error({ problem: error instanceof Error ? error.message : String(error) }, 'API keys not changed')
    }
  }
  watchFile(file, { interval: pollMs, persistent: false }, reload)
  return () => unwatchFile(file, reload)
}
