import { write, writeSync } from 'node:fs'
import { type DestinationStream, pino, type Level, type Logger } from 'pino'

/** The process's log: JSON lines, on standard error so that standard output stays the startup banner's. */
export interface Log {
  logger: Logger
  /** Writes what is buffered; to be called before the process exits. */
  flush(): void
}

const STANDARD_ERROR = 2
/** Lines are collected to this size and no longer than this time: a write for each costs more than the line. */
const BUFFER_BYTES = 8192
const FLUSH_MS = 100
/** Characters that wait for a full disk or a slow reader; lines on top are lost, and counted in the next one that is not. */
const MAX_WAITING = 4 * 2 ** 20
/** At the end a reader that lags is waited for so often and so long. */
const MAX_PAUSES = 20
const PAUSE_MS = 50

const NOTHING: Buffer = Buffer.alloc(0)

/** Opens the log. Writing does not wait for the reader; a killed process loses at most the last tenth of a second. */
export function openLog(level: Level | 'silent'): Log {
  const sink = new LineSink(STANDARD_ERROR)
  const logger = pino({ level, base: null }, sink)
  setInterval(() => sink.flush(), FLUSH_MS).unref()
  const flush = (): void => sink.flushSync()
  process.once('exit', flush)
  return { logger, flush }
}

/**
 * Lines on their way to a file. That they cannot be written never ends the program: they wait for the next flush.
 * pino's own destination throws when the disk is full, and then tries for ever in the exit of the process.
 */
class LineSink implements DestinationStream {
  #waiting = ''
  /** Lines that found no room since the last one that did. */
  #lost = 0
  /** What the last write left. */
  #rest: Buffer = NOTHING
  #writing = false

  constructor(private readonly file: number) {}

  write(line: string): void {
    if (this.#waiting.length + line.length > MAX_WAITING) {
      this.#lost++
      return
    }
    if (this.#lost > 0) this.#waiting += lostLine(this.#lost)
    this.#lost = 0
    this.#waiting += line
    if (this.#waiting.length >= BUFFER_BYTES) this.flush()
  }

  /** Begins to write what there is; returns at once. */
  flush(): void {
    if (this.#writing) return
    const bytes = this.#take()
    if (bytes.length === 0) return
    this.#writing = true
    write(this.file, bytes, (error, written) => {
      this.#writing = false
      this.#rest = Buffer.concat([error ? bytes : bytes.subarray(written), this.#rest])
      if (!error && (this.#rest.length > 0 || this.#waiting.length >= BUFFER_BYTES)) this.flush()
    })
  }

  /** Writes what there is, beside what is being written, before it returns: as far as the file takes it. */
  flushSync(): void {
    for (let bytes = this.#take(); bytes.length > 0; bytes = this.#take()) {
      const written = writeNow(this.file, bytes)
      this.#rest = bytes.subarray(written)
      if (this.#rest.length > 0) return
    }
  }

  /** The oldest of what is not written yet. */
  #take(): Buffer {
    const bytes = this.#rest.length > 0 ? this.#rest : Buffer.from(this.#waiting)
    if (this.#rest.length === 0) this.#waiting = ''
    this.#rest = NOTHING
    return bytes
  }
}

/** As pino writes a warning. */
function lostLine(lost: number): string {
  return `${JSON.stringify({ level: 40, time: Date.now(), lost, msg: 'lines of the log were lost: they could not be written in time' })}\n`
}

/** Writes until the file takes no more; returns the number of bytes. Gives a reader that lags a second. */
function writeNow(file: number, bytes: Buffer): number {
  let written = 0
  for (let pauses = 0; written < bytes.length;) {
    try {
      written += writeSync(file, bytes, written)
    } catch (error) {
      const lags = error instanceof Error && 'code' in error && error.code === 'EAGAIN'
      if (!lags || pauses++ === MAX_PAUSES) break
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE_MS)
    }
  }
  return written
}
