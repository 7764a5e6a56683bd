/** Follows the key file. */
import { unwatchFile, watchFile } from 'node:fs'
import type { Logger } from 'pino'
import { readText } from '../../engine/config/index.js'
import type { KeyedAccess } from './access.js'
import { type KeyEntry, parseKeyFile, unknownModels } from './key-file.js'

/** How soon a change is seen. Looking at times sees every way of replacing a file, on every file system. */
const POLL_MS = 1000

/** A key file as read. */
export interface LoadedKeys {
  entries: KeyEntry[]
  /** Models that it names and nobody serves, one line each with its place. */
  remarks: string[]
}

/** Reads and checks a key file; `modelIds` are those of models.yaml. Throws ConfigError. */
export function loadKeyFile(file: string, modelIds: readonly string[]): LoadedKeys {
  const text = readText(file)
  const entries = parseKeyFile(text, file)
  return { entries, remarks: unknownModels(text, file, entries, modelIds) }
}

/** Says what a key file names and nobody serves. */
export function warnOfModels({ remarks }: LoadedKeys, log: Logger): void {
  for (const remark of remarks) log.warn({ remark }, 'a key names a model that is not served')
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
      const loaded = loadKeyFile(file, modelIds())
      access.use(loaded.entries)
      log.info({ keys: loaded.entries.length }, 'API keys read again')
      warnOfModels(loaded, log)
    } catch (error) {
      log.error({ problem: error instanceof Error ? error.message : String(error) }, 'API keys not changed')
    }
  }
  watchFile(file, { interval: pollMs, persistent: false }, reload)
  return () => unwatchFile(file, reload)
}
