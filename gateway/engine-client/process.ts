import { spawn, type ChildProcess } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import type { Level, Logger } from 'pino'

/** The engine program without its --config and --socket arguments. */
export interface EngineCommand {
  command: string
  args: readonly string[]
}

/** How a process ended. */
export interface ExitInfo {
  code: number | null
  signal: NodeJS.Signals | null
  /** Its last lines on standard error, for the one message a person reads when it does not start. */
  lastLines: readonly string[]
}

/** Signals that a process raises by what it does, SIGALRM as an engine whose step hangs; others are sent to it. */
const OWN_SIGNALS: ReadonlySet<string> = new Set([
  'SIGSEGV',
  'SIGBUS',
  'SIGILL',
  'SIGFPE',
  'SIGABRT',
  'SIGALRM',
  'SIGTRAP',
  'SIGSYS',
])

/** True for a process that died by itself: of a fault, or with an error. */
export function diedByItself({ code, signal }: ExitInfo): boolean {
  return signal === null ? code !== null && code !== 0 : OWN_SIGNALS.has(signal)
}

const KEPT_LINES = 20
const LEVELS: Record<number, Level> = { 10: 'trace', 20: 'debug', 30: 'info', 40: 'warn', 50: 'error', 60: 'fatal' }

/** Logs one line of the engine: pino's JSON keeps its level and fields, anything else is text. Returns it as text. */
function forwardLine(log: Logger, line: string): string {
  if (line.startsWith('{')) {
    try {
      const { level, msg, time: _time, pid: _pid, hostname: _hostname, ...fields } = JSON.parse(line)
      log[LEVELS[level] ?? 'info'](fields, String(msg ?? ''))
      return [msg, fields.err?.message].filter(Boolean).join(': ')
    } catch {
      // Not JSON after all.
    }
  }
  log.info(line)
  return line
}

/**
 * One engine process. Its standard input is a pipe that only this process holds: the engine exits when it closes,
 * so that it never outlives a gateway that was killed. Runs in its own process group: a Ctrl-C in the terminal
 * reaches the gateway alone, which drains first.
 */
export class EngineProcess {
  readonly #child: ChildProcess
  readonly #lastLines: string[] = []
  /** Resolves once, when the process is gone or could not be started. */
  readonly exited: Promise<ExitInfo>

  constructor(command: EngineCommand, args: readonly string[], log: Logger) {
    this.#child = spawn(command.command, [...command.args, ...args], { stdio: 'pipe', detached: true })
    this.#forward(this.#child.stdout, log, false)
    this.#forward(this.#child.stderr, log, true)
    // Writing to it never happens, but its peer's death must not become an unhandled error.
    this.#child.stdin?.on('error', () => undefined)
    this.exited = new Promise((resolve) => {
      const ended = (code: number | null, signal: NodeJS.Signals | null): void =>
        resolve({ code, signal, lastLines: this.#lastLines })
      this.#child.once('exit', ended)
      this.#child.once('error', (error) => {
        this.#lastLines.push(error.message)
        ended(null, null)
      })
    })
  }

  /** Process id; undefined when it could not be started. */
  get pid(): number | undefined {
    return this.#child.pid
  }

  /** Asks the engine to end, kills it after `graceMs`, and resolves when it is gone. */
  async stop(graceMs: number): Promise<void> {
    this.#child.kill('SIGTERM')
    const timer = setTimeout(() => this.kill(), graceMs)
    await this.exited
    clearTimeout(timer)
  }

  kill(): void {
    this.#child.kill('SIGKILL')
  }

  #forward(stream: Readable | null, log: Logger, keep: boolean): void {
    if (stream === null) return
    createInterface({ input: stream, crlfDelay: Infinity }).on('line', (line) => {
      const text = forwardLine(log, line)
      if (!keep) return
      this.#lastLines.push(text)
      if (this.#lastLines.length > KEPT_LINES) this.#lastLines.shift()
    })
  }
}
