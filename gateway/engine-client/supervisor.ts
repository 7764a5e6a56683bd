import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { DescribeResponse, EngineClient, EngineStatus } from '../../proto/gen/edgeshift/v1/engine.js'
import { describe, openClient, waitForReady } from './connect.js'
import { diedByItself, EngineProcess, type EngineCommand, type ExitInfo } from './process.js'
import type { Pins } from './pins.js'
import { decideRestart, type EngineLife, type RestartPolicy } from './restart-policy.js'
import { EngineSession } from './session.js'
import type { Waiters } from './waiters.js'

/** What the supervisor needs to run one engine. */
export interface SupervisorOptions {
  command: EngineCommand
  /** Its number among the engines of the box. */
  place: number
  /** The only device that it serves; undefined: all. */
  device: string | undefined
  /** What operators have pinned: each start is told. */
  pins: Pick<Pins, 'args'>
  configFile: string
  /** A copy of the configuration in use: what an engine starts from while the file holds a refused edit. */
  lastGoodFile: string
  /** A private folder for the engine's sockets. */
  socketDir: string
  restart: RestartPolicy
  /** From the process's start until it takes connections and has given its assets. */
  startTimeoutMs: number
  /** Pause between two health checks. */
  heartbeatMs: number
  /** An engine that does not answer a health check for this long is killed. */
  hangAfterMs: number
  /** From SIGTERM to SIGKILL. */
  stopGraceMs: number
}

/** Hears of the engine's life. `onConnected` runs before the session is offered; rejecting counts as a crash. */
export interface SupervisorListener {
  onConnected(client: EngineClient): Promise<void>
  /** One step of the engine with the number of sequences that advanced. */
  onStep(batchSize: number): void
  /** The process is gone: `ended` is the session that it had, `byItself` whether nobody killed it. */
  onRestart(ended: EngineSession | undefined, byItself: boolean): void
}

/** Where the engine is: `crash_loop` = it keeps dying and is retried slowly. */
export type EngineState = 'starting' | 'up' | 'crash_loop' | 'stopped'

/** Runs one engine process, restarts it when it dies, and holds the session to it. Owns process, client, session. */
export class EngineSupervisor {
  #options: SupervisorOptions
  readonly #listener: SupervisorListener
  readonly #log: Logger
  readonly #stop = new AbortController()
  readonly #stopped = new Promise<void>((resolve) => {
    this.#stop.signal.addEventListener('abort', () => resolve(), { once: true })
  })
  readonly #waiters: Waiters
  #client: EngineClient | undefined
  #session: EngineSession | undefined
  /** Of the process that runs now, or ran last; and whether it was killed for not answering. */
  #lastSession: EngineSession | undefined
  #hung = false
  #status: EngineStatus | undefined
  #state: EngineState = 'starting'
  #exit: ExitInfo | undefined
  #starts = 0
  /** Of the process that runs now. */
  #steps = 0
  #running: Promise<void> | undefined

  /** `waiters` hear of every change of the engine or of what it says. */
  constructor(options: SupervisorOptions, listener: SupervisorListener, waiters: Waiters, log: Logger) {
    this.#options = options
    this.#waiters = waiters
    this.#listener = listener
    this.#log = log
  }

  /** Starts the engine and keeps it running until `stop`. Returns at once. */
  start(): void {
    this.#running ??= this.#run()
  }

  /** How long an engine may stay silent, for health checks that begin from now on. */
  setHangAfter(hangAfterMs: number): void {
    this.#options = { ...this.#options, hangAfterMs }
  }

  /** Ends session and process; resolves when the process is gone. */
  async stop(): Promise<void> {
    this.#stop.abort()
    this.#session?.close('the gateway is shutting down')
    await this.#running
    this.#change('stopped')
  }

  get state(): EngineState {
    return this.#state
  }

  /** The open session, or undefined while there is none. */
  get session(): EngineSession | undefined {
    return this.#session
  }

  /** For calls beside the session, undefined while there is none. */
  get client(): EngineClient | undefined {
    return this.#client
  }

  /** Last known status of the running engine, undefined while there is none. */
  get status(): EngineStatus | undefined {
    return this.#session && this.#status
  }

  /** How the engine last ended. */
  get lastExit(): ExitInfo | undefined {
    return this.#exit
  }

  /** Asks the engine for fresh figures; keeps the last ones when it does not answer. */
  async refresh(): Promise<void> {
    if (this.#client === undefined || this.#session === undefined) return
    try {
      this.#take(await describe(this.#client, 1000))
    } catch {
      // The heartbeat decides whether that is a failure.
    }
  }

  /**
   * Resolves when it is known whether the engine outlived what it just reported: it answers, or its session ended. When
   * `signal` aborts nobody waits for more than the answer.
   */
  async confirm(signal: AbortSignal): Promise<void> {
    const session = this.#session
    if (this.#client === undefined || session === undefined) return
    try {
      this.#take(await describe(this.#client, 1000))
    } catch {
      const over = (): true | undefined => (this.#session === session ? undefined : true)
      await this.#waiters.waitFor(over, this.#options.hangAfterMs, signal)
    }
  }

  async #run(): Promise<void> {
    let crashes = 0
    while (!this.#stop.signal.aborted) {
      const { exit, ...life } = await this.#runOnce()
      if (this.#stop.signal.aborted) return
      const next = decideRestart(this.#options.restart, crashes, life)
      crashes = next.crashes
      this.#exit = exit
      this.#listener.onRestart(this.#lastSession, diedByItself(exit) || this.#hung)
      const { code, signal } = exit
      this.#log.error({ code, signal, crashes, delayMs: next.delayMs }, 'the engine ended; it is restarted')
      this.#change(next.crashLoop ? 'crash_loop' : 'starting')
      await delay(next.delayMs, undefined, { signal: this.#stop.signal }).catch(() => undefined)
    }
  }

  /** One process, until it is gone. */
  async #runOnce(): Promise<EngineLife & { exit: ExitInfo }> {
    this.#steps = 0
    this.#lastSession = undefined
    this.#hung = false
    const { configFile, device, lastGoodFile, place } = this.#options
    const socket = join(this.#options.socketDir, `engine-${place}-${++this.#starts}.sock`)
    const args = ['--config', configFile, '--last-good', lastGoodFile, '--socket', socket]
    if (device !== undefined) args.push('--device', device)
    args.push(...this.#options.pins.args)
    const child = new EngineProcess(this.#options.command, args, this.#log)
    const client = openClient(socket)
    this.#log.info({ enginePid: child.pid, socket }, 'engine started')
    let servedSince = 0
    try {
      await this.#connect(client, child)
      servedSince = performance.now()
      await Promise.race([this.#serve(client), child.exited, this.#stopped])
    } catch (error) {
      if (!this.#stop.signal.aborted) this.#log.error({ err: error }, 'the engine could not be reached')
    } finally {
      this.#session?.close('its process ended')
      this.#session = undefined
      this.#client = undefined
      client.close()
      await child.stop(this.#options.stopGraceMs)
      rmSync(socket, { force: true })
    }
    const servedMs = servedSince === 0 ? 0 : performance.now() - servedSince
    return { servedMs, steps: this.#steps, exit: await child.exited }
  }

  /** Resolves when the engine takes connections and the listener is done with it. */
  async #connect(client: EngineClient, child: EngineProcess): Promise<void> {
    const stopped = this.#stopped.then(() => Promise.reject(new Error('stopped')))
    const died = child.exited.then(() => Promise.reject(new Error('its process ended')))
    const connected = waitForReady(client, this.#options.startTimeoutMs).then(() => this.#listener.onConnected(client))
    // Whichever loses the race may reject later.
    for (const promise of [stopped, died, connected]) promise.catch(() => undefined)
    await Promise.race([connected, died, stopped])
  }

  /** Opens the session and offers it; resolves when it ended. */
  async #serve(client: EngineClient): Promise<void> {
    this.#take(await describe(client, this.#options.hangAfterMs))
    if (this.#stop.signal.aborted) return
    const ended = new AbortController()
    const session = new EngineSession(client.session(), {
      onStatus: (status) => {
        this.#status = status
        this.#notify()
      },
      onStep: (batchSize) => {
        this.#steps++
        this.#listener.onStep(batchSize)
      },
      onEnd: (reason) => {
        this.#log.debug({ reason }, 'engine session ended')
        this.#session = undefined
        // Until it is known how often it has died, it counts as one that comes back.
        this.#change('starting')
        ended.abort()
      },
    })
    this.#client = client
    this.#session = session
    this.#lastSession = session
    this.#change('up')
    await this.#watch(client, session, ended.signal)
  }

  /** Health: asks again and again until the session ends; a silent engine's session is closed. */
  async #watch(client: EngineClient, session: EngineSession, ended: AbortSignal): Promise<void> {
    while (!ended.aborted) {
      await delay(this.#options.heartbeatMs, undefined, { signal: ended }).catch(() => undefined)
      if (ended.aborted) return
      try {
        this.#take(await describe(client, this.#options.hangAfterMs))
      } catch (error) {
        if (session.open) {
          this.#hung = true
          this.#log.error({ err: error }, 'the engine does not answer')
        }
        session.close('it does not answer')
      }
    }
  }

  #take(response: DescribeResponse): void {
    if (response.status === undefined) return
    const devices = response.devices.length > 0 ? response.devices : response.status.devices
    this.#status = { ...response.status, devices }
    this.#notify()
  }

  #change(state: EngineState): void {
    this.#state = state
    this.#notify()
  }

  #notify(): void {
    this.#waiters.notify()
  }
}
