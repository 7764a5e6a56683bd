import { renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Config, ConfigWatcher } from '../engine/config/index.js'
import type { EngineCommand } from './engine-client/process.js'
import { DEFAULT_RESTART_POLICY, type RestartPolicy } from './engine-client/restart-policy.js'
import { createSocketDir, removeSocketDir, removeStaleSocketDirs } from './engine-client/socket-dir.js'
import { EngineOperator } from './engine-client/operator.js'
import { Pins } from './engine-client/pins.js'
import { EngineFleet } from './engine-client/fleet.js'
import { EngineSupervisor } from './engine-client/supervisor.js'
import { Waiters } from './engine-client/waiters.js'
import { RunTelemetry } from './generate/observer.js'
import { Pipeline } from './generate/pipeline.js'
import { reportHealth } from './health.js'
import type { Logger } from 'pino'
import { Metrics } from './metrics.js'
import { Models, type TextLoader } from './models.js'
import { restartRemarks } from './restart-remarks.js'
import { RouteFeedback } from './router/feedback.js'
import { RungMeter } from './router/meter.js'
import { RouteTelemetry } from './router/telemetry.js'
import { RungWatch } from './router/watch.js'
import { type Granted, KeyedAccess, openAccess } from './keys/access.js'
import { followKeyFile, loadKeyFile, warnOfModels } from './keys/watch.js'
import { STREAM_BYTES, Streams } from './resume/streams.js'
import type { Access, Limits, Services } from './services.js'

/** What the gateway without its listeners is made from. */
export interface CoreOptions {
  config: Config
  configFile: string
  /** What `config` was read from. */
  configText: string
  version: string
  /** The engine program. */
  engine: EngineCommand
  loadText: TextLoader
  log: Logger
  /** Default: DEFAULT_RESTART_POLICY. */
  restart?: RestartPolicy
}

const MAX_ENGINE_WAITING = 1024
const START_TIMEOUT_MS = 60_000
/** After this long it is said that engines have not read an edit. */
const RELOAD_WAIT_MS = 30_000
const HEARTBEAT_MS = 2000
const STOP_GRACE_MS = 5000

/** Bounds of every request. */
export const LIMITS: Limits = {
  maxBodyBytes: 8 * 2 ** 20,
  maxPromptTokens: 1_000_000,
  maxPrompts: 128,
  maxStopStrings: 16,
  maxStopLength: 1024,
  maxChoices: 128,
  maxTopLogprobs: 20,
}

const monotonicMs = (): number => performance.now()

/** The gateway without its listeners: services for adapters over a supervised engine. */
export class Core {
  readonly services: Services
  readonly engines: EngineFleet
  readonly #pipeline: Pipeline
  readonly #models: Models
  readonly #pins: Pins
  readonly #socketDir: string
  readonly #removeDir: () => void
  readonly #watcher: ConfigWatcher
  readonly #streams: Streams
  readonly #telemetry: RunTelemetry
  /** In use. */
  #config: Config
  /** Edits of `server` that wait for the next start, and why the last edit was refused; one line each. */
  #waiting: readonly string[] = []
  #refusal: readonly string[] = []
  /** The same of the key file. */
  #keysRefusal: readonly string[] = []
  #unfollowKeys = (): void => undefined
  readonly #ended = new AbortController()

  /** Makes the private socket folder; it goes with `stop`, or with the process. */
  constructor(options: CoreOptions) {
    removeStaleSocketDirs()
    this.#socketDir = createSocketDir()
    this.#removeDir = () => removeSocketDir(this.#socketDir)
    process.once('exit', this.#removeDir)
    const { config, log } = options
    writeFileSync(this.#lastGoodFile, options.configText, { mode: 0o600 })
    const metrics = new Metrics(options.version)
    const routes = new RouteTelemetry(metrics.registry, log)
    const knowledge = { watch: new RungWatch(monotonicMs, routes), meter: new RungMeter(), now: monotonicMs }
    this.#config = config
    const telemetry = new RunTelemetry(metrics, log, config.server.log_prompts)
    this.#telemetry = telemetry
    const feedback = new RouteFeedback(knowledge.watch, knowledge.meter, routes, telemetry)
    this.#pins = new Pins(config)
    this.engines = this.#newFleet(options, metrics, feedback)
    const snapshot = () => ({ state: this.engines.state, offers: this.engines.offers })
    this.#models = new Models(config, options.loadText, snapshot, knowledge)
    routes.watch(metrics.registry, () => this.#models.list())
    const bounds = {
      maxPromptTokens: LIMITS.maxPromptTokens,
      engineWaitMs: config.server.engine_wait,
      failoverWaitMs: config.server.failover_wait,
      maxEngineWaiting: MAX_ENGINE_WAITING,
    }
    this.#pipeline = new Pipeline(this.#models, this.engines, bounds, feedback)
    metrics.watchActive(() => this.#pipeline.active)
    metrics.watchEngine({ refresh: () => this.engines.refresh(), status: () => this.engines.status })
    this.#streams = new Streams({ graceMs: config.server.resume_grace, ...STREAM_BYTES })
    const granted = { generator: this.#pipeline, models: this.#models, health: () => this.#health() }
    this.#watcher = new ConfigWatcher(options.configFile, config.digest, {
      accepted: (next, text) => {
        this.#waiting = restartRemarks(config, next, text, options.configFile)
        this.#refusal = []
        for (const remark of this.#waiting) log.warn({ remark }, 'this edit takes effect at the next start')
        this.#reload(next, text).then(
          (taken) => taken && log.info('configuration reloaded'),
          (error: unknown) => log.error({ err: error }, 'the texts of edited models did not come'),
        )
      },
      refused: ({ message }) => {
        this.#refusal = refusals(message)
        log.error({ reason: message }, 'edit of the configuration refused')
      },
    })
    this.services = {
      ...granted,
      access: this.#access(config, granted, log),
      limits: LIMITS,
      streams: this.#streams,
      operator: new EngineOperator(this.engines, this.#pins),
      log,
      metrics: metrics.registry,
    }
  }

  get #lastGoodFile(): string {
    return join(this.#socketDir, 'last-good.yaml')
  }

  /**
   * Names, tags, policies, text sides and the times of `server` follow the file; its addresses and files do not. False when
   * another edit, or the end, came before the engines had this one.
   */
  async #reload(next: Config, text: string): Promise<boolean> {
    const { server } = next
    this.#config = next
    this.#keepLastGood(text)
    this.#pins.follow(next)
    this.#pipeline.setWaits(server.engine_wait, server.failover_wait)
    this.engines.setHangAfter(server.engine_timeout)
    this.#streams.setGrace(server.resume_grace)
    this.#telemetry.setLogPrompts(server.log_prompts)
    await this.#models.update(next)
    if (server.api_keys_file !== undefined) this.#warnOfKeys(server.api_keys_file)
    // The engines read the file, too: until they have taken this edit, text files are those of an earlier one.
    const replaced = (): boolean => this.#config !== next || this.#ended.signal.aborted
    const taken = (): true | undefined => replaced() || this.engines.hasTaken(next.digest) || undefined
    while (!(await this.engines.waitFor(taken, RELOAD_WAIT_MS, this.#ended.signal)) && !replaced()) {
      this.services.log.warn('the engines have not taken the last edit of the configuration yet')
    }
    if (replaced()) return false
    const { anyClient: client } = this.engines
    if (client) await this.#models.loadTexts(client)
    return true
  }

  /** How long requests in flight may go on at the end, by the configuration in use, milliseconds. */
  get drainMs(): number {
    return this.#config.server.drain_timeout
  }

  /** Where it cannot be written, the copy before it stays: the engines have the edit, and the gateway must follow them. */
  #keepLastGood(text: string): void {
    const next = `${this.#lastGoodFile}.new`
    try {
      writeFileSync(next, text, { mode: 0o600 })
      renameSync(next, this.#lastGoodFile)
    } catch (error) {
      rmSync(next, { force: true })
      this.services.log.warn(
        { err: error },
        'no copy of the edit: beside a refused one, engines start from the copy before',
      )
    }
  }

  /** Keys may name models that this edit removed. */
  #warnOfKeys(file: string): void {
    try {
      const served = this.#models.list().map(({ id }) => id)
      warnOfModels(loadKeyFile(file, served), this.services.log)
    } catch {
      // The file's own watcher tells what is wrong with it.
    }
  }

  /** Starts the engines; returns at once. */
  start(): void {
    this.engines.start()
    // The file was read a while ago.
    this.#watcher.check()
  }

  /** Requests in flight. */
  get active(): number {
    return this.#pipeline.active
  }

  /** Takes no new requests; resolves when those in flight have ended, after `limitMs` by failing them. */
  drain(limitMs: number): Promise<void> {
    this.#streams.close()
    return this.#pipeline.drain(limitMs)
  }

  /** Stops the engines and frees everything. Requests still in flight fail. */
  async stop(): Promise<void> {
    this.#unfollowKeys()
    this.#watcher.close()
    this.#ended.abort()
    await this.engines.stop()
    await this.#models.close()
    this.#removeDir()
    process.off('exit', this.#removeDir)
  }

  #access({ server }: Config, granted: Granted, log: Logger): Access {
    const { api_keys_file: file } = server
    if (file === undefined) return openAccess(granted)
    const modelIds = () => this.#models.list().map(({ id }) => id)
    const loaded = loadKeyFile(file, modelIds())
    warnOfModels(loaded, log)
    const access = new KeyedAccess(granted, loaded.entries)
    const refused = (problem: string | undefined): void => {
      this.#keysRefusal = problem === undefined ? [] : refusals(problem)
    }
    this.#unfollowKeys = followKeyFile(file, { modelIds, access, refused, log })
    return access
  }

  /** One engine for all devices, or one for each. */
  #newFleet(options: CoreOptions, metrics: Metrics, feedback: RouteFeedback): EngineFleet {
    const { server, devices } = options.config
    const settings = {
      command: options.engine,
      pins: this.#pins,
      configFile: options.configFile,
      lastGoodFile: this.#lastGoodFile,
      socketDir: this.#socketDir,
      restart: options.restart ?? DEFAULT_RESTART_POLICY,
      startTimeoutMs: START_TIMEOUT_MS,
      heartbeatMs: HEARTBEAT_MS,
      hangAfterMs: server.engine_timeout,
      stopGraceMs: STOP_GRACE_MS,
    }
    const listener = {
      onConnected: (client: Parameters<Models['loadTexts']>[0]) => this.#models.loadTexts(client),
      onStep: (batchSize: number) => metrics.observeStep(batchSize),
    }
    const waiters = new Waiters()
    const served = server.engines === 'per_device' ? devices.map(({ id }) => id) : [undefined]
    const supervisors = served.map((device, place) => {
      const log = options.log.child({ component: 'engine', ...(device !== undefined && { device }) })
      const onRestart = (ended: object | undefined, byItself: boolean): void => {
        metrics.countRestart()
        if (ended) this.#pipeline.gate.verdict(ended, byItself)
        feedback.onEngineEnd(place)
      }
      return new EngineSupervisor({ ...settings, device, place }, { ...listener, onRestart }, waiters, log)
    })
    return new EngineFleet(supervisors, waiters)
  }

  #health(): ReturnType<Services['health']> {
    return reportHealth({
      models: this.#models.list(),
      engineUp: this.engines.up,
      draining: this.#pipeline.draining,
      config: [...this.#refusal, ...this.#keysRefusal, ...this.#waiting, ...(this.engines.status?.configWaiting ?? [])],
    })
  }
}

/** One line for each fault of an edit. */
function refusals(message: string): string[] {
  return message.split('\n').map((line) => `edit refused: ${line}`)
}
