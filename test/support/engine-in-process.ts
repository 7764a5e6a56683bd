/** A whole engine without its transport in this process: the addon's devices, models of a configuration, loads on demand. */
import { pino } from 'pino'
import { FinishReason, type SequenceDelta, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import { loadAddon } from '../../engine/addon.js'
import { parseConfig } from '../../engine/config/index.js'
import { Engine, type Variant } from '../../engine/engine.js'
import { GrammarDesk } from '../../engine/grammar/desk.js'
import { vocabularies } from '../../engine/grammar/vocabularies.js'
import type { NativeDevice } from '../../engine/native.js'
import { readCatalog } from '../../engine/residency/catalog.js'
import { Reloader } from '../../engine/residency/reload.js'
import type { Residency } from '../../engine/residency/residency.js'
import { startResidency } from '../../engine/residency/setup.js'
import { Collector, submitOf } from './fake-engine.js'

/** A model of two layers in test/fixtures, a few hundred kilobytes. */
export const tinyModel = (type: string): string =>
  new URL(`../fixtures/gguf/${type}/model.gguf`, import.meta.url).pathname

/** The engine and what a test does with it. */
export interface InProcessEngine {
  engine: Engine
  residency: Residency
  reloader: Reloader
  /** Ends when nothing is being loaded any more. */
  settled(): Promise<void>
  variant(name: string): Variant
  /** Ledger entries as "kind owner bytes". */
  ledger(): string[]
  ask(variant: string, prompt: number[], overrides?: Partial<Submit>): Promise<Answer>
  /** Stops it and checks that every model can be unloaded and the device closed. */
  close(): Promise<void>
}

/** How a request ended and what it cost. */
export interface Answer {
  tokens: number[]
  end: SequenceDelta
  /** From submit to first schedule, milliseconds; undefined when it never ran. */
  waitedMs: number | undefined
  firstTokenMs: number | undefined
}

/** Paths in `yaml` are absolute. */
export function engineInProcess(
  yaml: string,
  wrap: (device: NativeDevice) => NativeDevice = (device) => device,
): InProcessEngine {
  const config = parseConfig(yaml, 'models.yaml')
  const addon = loadAddon()
  const opened: NativeDevice[] = []
  const wrapped = {
    ...addon,
    openDevice: (options: Parameters<typeof addon.openDevice>[0]) => {
      const device = addon.openDevice(options)
      opened.push(device)
      return wrap(device)
    },
  }
  const clock = (): number => performance.now()
  const log = pino({ level: process.env.EDGESHIFT_LOG_LEVEL ?? 'silent' }, pino.destination(2))
  const engine = new Engine({ version: 'test', maxWaiting: config.scheduler.max_waiting, clock, log })
  const events = { deviceFailed: () => {}, sequenceFinished: engine.sequenceFinished }
  const options = { clock, log, events, depth: 2, stepTimeoutMs: 60_000, interactiveGoalMs: 0 }
  const catalog = readCatalog(config, (path) => addon.readGguf(path))
  engine.grammars = new GrammarDesk(vocabularies(catalog.cards))
  const residency = startResidency(engine, config, catalog, wrapped, options)
  const reloader = new Reloader(engine, residency, wrapped, options, config, catalog)
  let ids = 0
  const variant = (name: string): Variant => {
    const found = engine.variants.get(name)
    if (!found) throw new Error(`no variant ${name}`)
    return found
  }
  return {
    engine,
    residency,
    reloader,
    variant,
    settled: () => residency.settled(),
    ledger: () =>
      engine.devices.flatMap(({ ledger }) =>
        ledger.entries.map(({ kind, owner, bytes }) => `${kind} ${owner} ${bytes}`),
      ),
    ask: async (name, prompt, overrides = {}) => {
      const startedAt = performance.now()
      const collector = new Collector()
      let firstTokenMs: number | undefined
      const owner = {
        blockedSince: undefined,
        deliver: (delta: SequenceDelta) => {
          if (delta.tokens.length > 0) firstTokenMs ??= performance.now() - startedAt
          collector.deliver(delta)
        },
      }
      const sequence = engine.submit(submitOf(ids++, prompt, { variant: name, ...overrides }), owner)
      const end = await collector.done
      const scheduledAt = sequence?.firstScheduledAt
      const waitedMs = scheduledAt === undefined ? undefined : scheduledAt - startedAt
      return { tokens: collector.tokens, end, waitedMs, firstTokenMs }
    },
    close: async () => {
      await engine.stop(FinishReason.CANCELLED)
      await residency.unloadAll()
      for (const device of opened) await device.close()
    },
  }
}
