import { existsSync } from 'node:fs'
import { Command } from 'commander'
import { type Logger, pino } from 'pino'
import { FinishReason } from '../proto/gen/edgeshift/v1/engine.js'
import { loadAddon } from './addon.js'
import {
  type Config,
  ConfigError,
  ConfigWatcher,
  defaultDevices,
  type Finding,
  loadConfig,
  locateRemarks,
  type OwnPart,
  ownPart,
  parseConfig,
  readText,
} from './config/index.js'
import { Engine } from './engine.js'
import { GrammarDesk } from './grammar/desk.js'
import { vocabularies } from './grammar/vocabularies.js'
import type { NativeAddon } from './native.js'
import { modelAssets } from './registry/index.js'
import { readCatalog } from './residency/catalog.js'
import { Reloader } from './residency/reload.js'
import { startResidency } from './residency/setup.js'
import { watchParent } from './server/lifecycle.js'
import { listen } from './server/listen.js'
import { type AssetSource, EngineService } from './server/service.js'
import { StepHungError } from './step/step-loop.js'

/** Exit codes beside 0 and 1: the device is lost, a restart brings it back. */
const EXIT_DEVICE_FAILED = 70
/**
 * What ends an engine whose step hangs: a thread that stays in a native call would hold up an orderly exit for ever. An alarm
 * is a process's own, where SIGKILL may be anybody's (gateway/engine-client/process.ts), and writes no core with weights
 * and prompts as SIGABRT may.
 */
const HUNG_SIGNAL = 'SIGALRM'
/** Time that running sequences get to end after SIGTERM. */
const DRAIN_MS = 5000
/** Time for the last messages to be written out. */
const FLUSH_MS = 500
/** Bytes of log that wait where standard error takes no more. */
const MAX_UNWRITTEN = 2 ** 20
/** One runs while the host reads the last one's tokens. */
const STEPS_IN_FLIGHT = 2

const clock = (): number => performance.now()

interface Arguments {
  config: string
  socket: string
  device?: string
  lastGood?: string
  pin: string[]
  unpin: string[]
}

const append = (value: string, values: string[]): string[] => [...values, value]

const args = new Command('edgeshift-engine')
  .requiredOption('--config <file>', 'models.yaml')
  .requiredOption('--socket <path>', 'unix socket to serve on')
  .option('--last-good <file>', 'configuration to start from while the file is not valid')
  .option('--device <id>', 'serve this device of the configuration only')
  .option('--pin <rung>', 'pinned by an operator; may be given again', append, [])
  .option('--unpin <rung>', 'unpinned by an operator; may be given again', append, [])
  .parse()
  .opts<Arguments>()
// Written at once: what says why the engine is about to die has to be out before it does.
const destination = pino.destination({ dest: 2, sync: true, maxLength: MAX_UNWRITTEN })
// What cannot be written must not end what works: it waits for the next line. The library's last flush would wait for ever.
destination.on('error', () => undefined)
destination.flushSync = () => undefined
const log = pino({ name: 'engine', level: process.env.EDGESHIFT_LOG_LEVEL ?? 'info' }, destination)
main(args, log).catch((error: unknown) => {
  log.fatal({ err: error }, 'the engine cannot run')
  process.exit(1)
})

/** Wires the engine and serves until told to stop. */
async function main({ config: file, socket, device, lastGood, pin, unpin }: Arguments, logger: Logger): Promise<void> {
  const addon = loadAddon()
  const complete = (read: Config): OwnPart => {
    chooseDevices(read, addon, logger)
    return device === undefined ? { config: read, elsewhere: new Set() } : ownPart(read, device)
  }
  const { config, elsewhere } = complete(readConfig(file, lastGood))
  const { max_waiting: maxWaiting, max_waiting_per_key: maxWaitingPerTenant } = config.scheduler
  const engine = new Engine({ version: addon.version(), maxWaiting, maxWaitingPerTenant, clock, log: logger })
  engine.configDigest = config.digest
  const catalog = readCatalog(config, (path) => addon.readGguf(path))
  // Built when asked for: by then the weights are loading on other threads.
  const assets: AssetSource = async (model) => {
    const card = catalog.cards.get(model)
    return card && modelAssets(card)
  }
  engine.grammars = new GrammarDesk(vocabularies(catalog.cards))
  const service = new EngineService(engine, assets, logger)
  const listener = await listen(socket, service.handlers)

  const exit = (code: number, graceMs: number): void => {
    service.close()
    listener
      .close(graceMs)
      .catch((error: unknown) => logger.error({ err: error }, 'closing failed'))
      .finally(() => process.exit(code))
  }
  const deviceFailed = (error: unknown): void => {
    logger.fatal({ err: error }, 'a device is lost')
    if (error instanceof StepHungError) process.kill(process.pid, HUNG_SIGNAL)
    // After this step's sequences were told.
    setImmediate(() => exit(EXIT_DEVICE_FAILED, FLUSH_MS))
  }
  const stop = (): void => {
    logger.info({ running: engine.running, waiting: engine.waiting }, 'stopping')
    drain(engine)
      .then(() => exit(0, FLUSH_MS))
      .catch((error: unknown) => {
        logger.error({ err: error }, 'stopping failed')
        exit(1, 0)
      })
  }
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
  watchParent(() => {
    logger.warn('the process that started this engine is gone')
    exit(0, 0)
  })

  const events = { deviceFailed, sequenceFinished: engine.sequenceFinished }
  const { step_timeout: stepTimeoutMs, interactive_goal: interactiveGoalMs } = config.scheduler
  const options = { clock, log: logger, events, depth: STEPS_IN_FLIGHT, stepTimeoutMs, interactiveGoalMs }
  const pins = new Map([...pin.map((rung) => [rung, true] as const), ...unpin.map((rung) => [rung, false] as const)])
  const residency = startResidency(engine, config, catalog, addon, options, elsewhere, pins)
  const reloader = new Reloader(engine, residency, addon, options, config, catalog)
  const watcher = new ConfigWatcher(file, config.digest, {
    accepted: (next, text) => reload(engine, reloader, complete(next), (later) => locateRemarks(text, file, later)),
    refused: (error) => refuseEdit(engine, error),
  })
  process.on('SIGHUP', () => watcher.check())
  // The file was read a while ago, or was refused.
  watcher.check()
}

/** The file, or the configuration that was in use before it was edited badly. Throws ConfigError when there is none. */
function readConfig(file: string, lastGood: string | undefined): Config {
  try {
    return loadConfig(file)
  } catch (error) {
    if (!(error instanceof ConfigError) || lastGood === undefined) throw error
    return parseConfig(readText(lastGood), file)
  }
}

function reload(
  engine: Engine,
  reloader: Reloader,
  { config: next, elsewhere }: OwnPart,
  locate: (later: readonly Finding[]) => readonly string[],
): void {
  const diff = reloader.plan(next)
  const { log: logger } = engine.options
  const waiting = locate(diff.later)
  for (const remark of waiting) logger.warn({ remark }, 'this edit takes effect at the next start')
  engine.configWaiting = waiting
  engine.configError = ''
  reloader.apply(next, diff, elsewhere)
  engine.configDigest = next.digest
  engine.changed()
  const { kept, fresh, retired, budgets } = diff
  logger.info({ kept, fresh, retired, memory: budgets.map(({ id }) => id) }, 'configuration reloaded')
}

/** The configuration in use stays. */
function refuseEdit(engine: Engine, error: ConfigError): void {
  engine.configError = error.message
  engine.options.log.error({ reason: error.message }, 'edit of the configuration refused')
  engine.changed()
}

/** Completes a configuration that names no devices; says why a GPU that is there is not among them. */
function chooseDevices(config: Config, addon: NativeAddon, logger: Logger): void {
  if (config.devices.length > 0) return
  config.devices = defaultDevices(addon.devices())
  const problem = config.devices.some(({ kind }) => kind === 'cuda') ? undefined : gpuProblem(addon)
  if (problem !== undefined) logger.warn({ problem }, 'there is a GPU, but this build or its driver cannot use it')
}

/** Why the GPU that the system shows cannot be opened; undefined where it shows none. */
function gpuProblem(addon: NativeAddon): string | undefined {
  if (!existsSync('/dev/nvidia0') && !existsSync('/dev/dxg')) return undefined
  try {
    addon.openDevice({ kind: 'cuda', index: 0, threads: 1, kvArenaBytes: 0 })
    return undefined
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/** Refuses new work, lets running sequences end for a while, cancels the rest. */
async function drain(engine: Engine): Promise<void> {
  engine.drain()
  const until = clock() + DRAIN_MS
  while (engine.running + engine.waiting > 0 && clock() < until) {
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  await engine.stop(FinishReason.ERROR, { code: 'shutting_down', message: 'the engine is stopping', retryAfterMs: 0 })
}
