import { pino, type Level, type Logger } from 'pino'

/** The process's log: JSON lines, on standard error so that standard output stays the startup banner's. */
export interface Log {
  logger: Logger
  /** Writes what is buffered; to be called before the process exits. */
  flush(): void
}

/** Lines are collected to this size and no longer than this time: a write for each costs more than the line. */
const BUFFER_BYTES = 8192
const FLUSH_MS = 100

/** Opens the log. Writing does not wait for the reader; a killed process loses at most the last tenth of a second. */
export function openLog(level: Level | 'silent'): Log {
  const destination = pino.destination({ fd: 2, sync: false, minLength: BUFFER_BYTES })
  const logger = pino({ level, base: null }, destination)
  setInterval(() => destination.flush(), FLUSH_MS).unref()
  const flush = (): void => {
    try {
      destination.flushSync()
    } catch {
      // Not open yet or closed already: nothing is buffered that could be written.
    }
  }
  process.once('exit', flush)
  return { logger, flush }
}
