import type { Level } from 'pino'
import { type Address, loadConfig } from '../engine/config/index.js'
import type { EngineStatus } from '../proto/gen/edgeshift/v1/engine.js'
import packageInfo from '../package.json' with { type: 'json' }
import { Core } from './core.js'
import type { EngineCommand, ExitInfo } from './engine-client/process.js'
import { Listeners } from './listeners.js'
import { type Log, openLog } from './log.js'
import type { Services } from './services.js'
import { loadTextModel } from './text/model-text.js'

/** The program's version. */
export const VERSION: string = packageInfo.version

/** What `serve` is asked to do. */
export interface ServeOptions {
  configFile: string
  /** The engine program. */
  engine: EngineCommand
  logLevel: Level | 'silent'
}

/** The running program. */
export class Gateway {
  private constructor(
    private readonly core: Core,
    private readonly listeners: Listeners,
    private readonly log: Log,
    private readonly drainMs: number,
  ) {}

  /** Listens and starts the engine; does not wait for it. Throws ConfigError, ListenError. */
  static async start({ configFile, engine, logLevel }: ServeOptions): Promise<Gateway> {
    const config = loadConfig(configFile)
    const log = openLog(logLevel)
    const core = new Core({
      config,
      configFile,
      engine,
      version: VERSION,
      loadText: loadTextModel,
      log: log.logger,
    })
    try {
      // The engine starts beside the listeners: its start takes longest.
      core.start()
      const listeners = await Listeners.open(core.services, config.server.http, config.server.grpc)
      return new Gateway(core, listeners, log, config.server.drain_timeout)
    } catch (error) {
      await core.stop()
      throw error
    }
  }

  get services(): Services {
    return this.core.services
  }

  /** Addresses as bound. */
  get addresses(): { http: Address; grpc: Address } {
    return { http: this.listeners.http, grpc: this.listeners.grpc }
  }

  /** What the engine says of itself; undefined while there is none. */
  get engineStatus(): EngineStatus | undefined {
    return this.core.engine.status
  }

  /** Resolves when no rung is loading any more, or with how the engine ended when it keeps failing at the start. */
  async settled(): Promise<ExitInfo | undefined> {
    const { engine } = this.core
    await engine.waitFor(() => (engine.state === 'crash_loop' || this.#isSettled() ? true : undefined), Infinity)
    return engine.state === 'crash_loop' ? engine.lastExit : undefined
  }

  /**
   * Takes no new requests, lets those in flight end for up to `drainMs` (default: the configuration's), then stops
   * engine and listeners.
   */
  async stop(drainMs = this.drainMs): Promise<void> {
    this.log.logger.info({ active: this.core.active }, 'stopping')
    await Promise.all([this.core.drain(drainMs), this.listeners.close(drainMs)])
    await this.core.stop()
    this.log.flush()
  }

  #isSettled(): boolean {
    const { status } = this.services.health()
    const loading = this.services.models.list().some(({ variants }) => variants.some((v) => v.state === 'loading'))
    return status === 'draining' || (this.core.engine.session !== undefined && !loading)
  }
}
