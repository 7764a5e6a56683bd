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

/** Where the keys of a file go. */
export interface KeyFollower {
  /** Those of the moment. */
  modelIds: () => readonly string[]
  access: KeyedAccess
  /** Told after every edit: why it was refused, one fault a line; undefined = it is in use. */
  refused: (problem: string | undefined) => void
  log: Logger
}

/** Gives `access` the keys of the file whenever it changes; after a bad edit the old keys stay. Returns what ends it. */
export function followKeyFile(
  file: string,
  { modelIds, access, refused, log }: KeyFollower,
  pollMs = POLL_MS,
): () => void {
  const reload = (): void => {
    try {
      const loaded = loadKeyFile(file, modelIds())
      access.use(loaded.entries)
      refused(undefined)
      log.info({ keys: loaded.entries.length }, 'API keys read again')
      warnOfModels(loaded, log)
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error)
      refused(problem)
      log.error({ problem }, 'API keys not changed')
    }
  }
  watchFile(file, { interval: pollMs, persistent: false }, reload)
  return () => unwatchFile(file, reload)
}
