import { pino, type Level, type Logger } from 'pino'

/** The process's log: JSON lines, on standard error so that standard output stays the startup banner's. */
export interface Log {
  logger: Logger
  /** Writes what is buffered; to be called before the process exits. */
  flush(): void
}

/** Opens the log. Writing does not wait for the reader; a crash loses at most what one turn of the loop wrote. */
export function openLog(level: Level | 'silent'): Log {
  const destination = pino.destination({ fd: 2, sync: false })
  const logger = pino({ level, base: null }, destination)
  const flush = (): void => {
    try {
      destination.flushSync()
    } catch {
      // Not open yet or closed already: nothing is buffered that could be written.
    }
  }
  return { logger, flush }
}
