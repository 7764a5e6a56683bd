import type { Level, Logger } from 'pino'
import { type Address, type Config, isLoopback, parseConfig, readText } from '../engine/config/index.js'
import type { EngineStatus } from '../proto/gen/edgeshift/v1/engine.js'
import packageInfo from '../package.json' with { type: 'json' }
import { Core } from './core.js'
import type { EngineCommand, ExitInfo } from './engine-client/process.js'
import { Listeners } from './listeners.js'
import { type Log, openLog } from './log.js'
import type { Services } from './services.js'
import { loadTextModel } from './text/model-text.js'
import { Tls } from './tls.js'

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
    private readonly tls: Tls | undefined,
  ) {}

  /** Listens and starts the engine; does not wait for it. Throws ConfigError, ListenError. */
  static async start({ configFile, engine, logLevel }: ServeOptions): Promise<Gateway> {
    const configText = readText(configFile)
    const config = parseConfig(configText, configFile)
    const log = openLog(logLevel)
    const tls = openTls(config, log.logger)
    const core = new Core({
      config,
      configFile,
      configText,
      engine,
      version: VERSION,
      loadText: loadTextModel,
      log: log.logger,
    })
    try {
      // The engine starts beside the listeners: its start takes longest.
      core.start()
      const listeners = await Listeners.open(core.services, config.server.http, config.server.grpc, tls)
      return new Gateway(core, listeners, log, tls)
    } catch (error) {
      tls?.close()
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

  /** Clients connect with TLS. */
  get secure(): boolean {
    return this.tls !== undefined
  }

  /** What the engines say of themselves; undefined while there is none. */
  get engineStatus(): EngineStatus | undefined {
    return this.core.engines.status
  }

  /** Resolves when no rung is loading any more, or with how the engine ended when it keeps failing at the start. */
  async settled(): Promise<ExitInfo | undefined> {
    const { engines } = this.core
    const failed = (): boolean => engines.state === 'crash_loop' && !engines.up
    await engines.waitFor(() => (failed() || this.#isSettled() ? true : undefined), Infinity)
    return failed() ? engines.lastExit : undefined
  }

  /**
   * Takes no new requests, lets those in flight end for up to `drainMs` (default: the configuration's), then stops
   * engine and listeners.
   */
  async stop(drainMs = this.core.drainMs): Promise<void> {
    this.log.logger.info({ active: this.core.active }, 'stopping')
    await Promise.all([this.core.drain(drainMs), this.listeners.close(drainMs)])
    await this.core.stop()
    this.tls?.close()
    this.log.flush()
  }

  #isSettled(): boolean {
    const { status } = this.services.health()
    const loading = this.services.models.list().some(({ variants }) => variants.some((v) => v.state === 'loading'))
    return status === 'draining' || (this.core.engines.up && this.core.engines.state !== 'starting' && !loading)
  }
}

/** TLS as configured. Throws ConfigError for a missing or unfit pair of files. */
function openTls({ server }: Config, log: Logger): Tls | undefined {
  const { tls_cert: cert, tls_key: key, http, grpc } = server
  if (cert !== undefined && key !== undefined) return new Tls({ cert, key }, log)
  const open = [http, grpc].filter(({ host }) => !isLoopback(host))
  if (open.length > 0) log.warn({ hosts: open.map(({ host }) => host) }, 'API keys travel in clear text: no tls_cert')
  return undefined
}
