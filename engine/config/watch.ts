import { type FSWatcher, unwatchFile, watch, watchFile } from 'node:fs'
import { basename, dirname, resolve } from 'node:path'
import { parseConfig, textDigest } from './load.js'
import { ConfigError } from './problem.js'
import type { Config } from './schema.js'
import { readText } from './strict.js'

/** Writing takes several events; the file is read when none has come for this long, milliseconds. */
const QUIET_MS = 100
/** Where the system gives no notice, the file is looked at so often. */
const POLL_MS = 1000

/** What becomes of an edit. */
export interface ConfigListener {
  /** The file is valid and differs from what was accepted last. */
  accepted(config: Config, text: string): void
  /** It is not: the configuration in use stays. */
  refused(error: ConfigError): void
}

/**
 * Tells of every edit of a configuration file, also of editors that write another file and rename it, and of links that
 * are turned. `check` looks at once, e.g. on SIGHUP. Owns its watcher and timer until `close`.
 */
export class ConfigWatcher {
  private readonly file: string
  private watcher: FSWatcher | undefined
  private timer: NodeJS.Timeout | undefined
  private seen: string | undefined

  /** `inUse`: the digest of what the file held when it was read; `check` then tells of edits since. */
  constructor(
    file: string,
    inUse: string,
    private readonly listener: ConfigListener,
  ) {
    this.file = resolve(file)
    this.seen = inUse
    try {
      // The folder, because a rename gives the name to another file.
      this.watcher = watch(dirname(this.file), { persistent: false }, (_, name) => {
        // A link inside the folder may be what changed.
        if (name === null || name === basename(this.file) || name.startsWith('..')) this.schedule()
      })
      this.watcher.on('error', () => this.poll())
    } catch {
      this.poll()
    }
  }

  /** Reads the file now. */
  check(): void {
    clearTimeout(this.timer)
    this.timer = undefined
    const before = this.seen
    this.seen = undefined
    let text: string, config: Config
    try {
      text = readText(this.file)
      this.seen = textDigest(text)
      if (this.seen === before) return
      config = parseConfig(text, this.file)
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error
      return this.listener.refused(error)
    }
    this.listener.accepted(config, text)
  }

  close(): void {
    clearTimeout(this.timer)
    this.watcher?.close()
    this.watcher = undefined
    unwatchFile(this.file)
  }

  private schedule(): void {
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.check(), QUIET_MS)
    this.timer.unref()
  }

  private poll(): void {
    this.watcher?.close()
    this.watcher = undefined
    watchFile(this.file, { interval: POLL_MS, persistent: false }, () => this.schedule())
  }
}
