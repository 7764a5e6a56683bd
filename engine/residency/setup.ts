import { VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Logger } from 'pino'
import { type Config, type DeviceConfig, gigabytesToBytes } from '../config/index.js'
import type { DeviceOptions } from '../device.js'
import type { Engine, Variant } from '../engine.js'
import type { NativeAddon } from '../native.js'
import type { BrokenVariant, Catalog, KnownVariant } from './catalog.js'
import { DeviceSlot } from './device-slot.js'
import { DriverWatch } from './driver-watch.js'
import { MemoryWatch } from './memory-watch.js'
import { findDevices, openDevice } from './open.js'
import { PackedStore } from './packed-store.js'
import { Residency } from './residency.js'

const NONE: ReadonlySet<string> = new Set()

/**
 * Declares every rung to the engine, opens the devices and starts to load what there is room for, pinned rungs first.
 * `elsewhere`: models that another engine loads at its start; `pins`: rungs that operators pinned or unpinned, others are
 * as in the file. A rung whose files cannot be read is FAILED. Never throws for one variant's or one device's fault.
 */
export function startResidency(
  engine: Engine,
  config: Config,
  catalog: Catalog,
  addon: NativeAddon,
  options: DeviceOptions,
  elsewhere: ReadonlySet<string> = NONE,
  pins: ReadonlyMap<string, boolean> = new Map(),
): Residency {
  const residency = new Residency(engine)
  engine.packed = openPackedStore(config.server, engine.options.log)
  openDevices(residency, engine, config.devices, catalog.known, addon, options)
  residency.watches.push(new MemoryWatch(engine))
  declare(residency, engine, catalog)
  for (const [name, pinned] of pins) {
    const managed = residency.managed.get(name)
    if (managed) managed.variant.pinned = pinned
  }
  residency.start(preloadOrder(residency, catalog.known, elsewhere))
  return residency
}

/** Undefined where no folder is configured, or where it cannot be used. */
function openPackedStore(
  { cache_dir: folder, cache_gb: size }: Config['server'],
  log: Logger,
): PackedStore | undefined {
  if (folder === undefined) return undefined
  try {
    return new PackedStore(folder, gigabytesToBytes(size), log)
  } catch (error) {
    log.error({ err: error, folder }, 'no repacked files: the folder cannot be used')
    return undefined
  }
}

/** Pinned variants first, else in the order of the file, best rung of the first model first; none of models `elsewhere`. */
export function preloadOrder(
  { managed }: Residency,
  known: readonly KnownVariant[],
  elsewhere: ReadonlySet<string> = NONE,
): string[] {
  const own = known.flatMap(({ model, name }) => (elsewhere.has(model) ? [] : [name]))
  const rank = (name: string): number => (managed.get(name)?.variant.pinned ? 0 : 1)
  return own.toSorted((a, b) => rank(a) - rank(b))
}

/** Opens those devices that some variant may be on. */
export function openDevices(
  residency: Residency,
  engine: Engine,
  configs: readonly DeviceConfig[],
  known: readonly KnownVariant[],
  addon: NativeAddon,
  options: DeviceOptions,
): void {
  for (const found of findDevices(configs, addon, engine.options.log)) {
    const { id } = found.config
    const demands = known.flatMap(({ demand }) => (demand.devices.includes(id) ? [demand] : []))
    if (demands.length === 0 || residency.slots.has(id)) continue
    try {
      const open = { ...openDevice(found, demands, addon, options), packed: engine.packed }
      engine.devices.push(open.device)
      residency.slots.set(id, new DeviceSlot(open))
      if (found.config.kind === 'cuda') residency.watches.push(new DriverWatch(engine, open.device, open.native))
    } catch (error) {
      engine.options.log.error({ err: error, device: id }, 'the device could not be opened')
    }
  }
}

/** Tells the engine of every rung, in the order of the file, as clients list them. */
export function declare(residency: Residency, engine: Engine, catalog: Catalog): void {
  const known = new Map(catalog.known.map((variant) => [variant.name, variant]))
  for (const [model, { notices }] of catalog.cards) {
    for (const notice of notices) engine.options.log.warn({ model, notice }, 'notice')
  }
  const broken = new Map(catalog.broken.map((variant) => [variant.name, variant]))
  for (const { name } of catalog.rungs) {
    const found = known.get(name)
    const fault = broken.get(name)
    if (found) addVariant(residency, engine, found)
    else if (fault) addBroken(engine, fault)
  }
}

/** Declares a variant that can be loaded. */
export function addVariant(residency: Residency, engine: Engine, known: KnownVariant): void {
  const { name, maxModelLen, vocabSize, pinned, demand, quality } = known
  const neededBytes = demand.weightBytes + demand.workspaceBytes
  const variant = { ...newVariant(known), maxModelLen, vocabSize, pinned, neededBytes, quality }
  engine.variants.set(name, variant)
  residency.managed.set(name, {
    variant,
    known,
    place: undefined,
    lastDevice: undefined,
    failures: 0,
    retryAt: 0,
    usedAt: 0,
    drainingSince: undefined,
  })
}

/** Declares a variant whose files cannot be used. */
function addBroken(engine: Engine, broken: BrokenVariant): void {
  const { name, error } = broken
  engine.variants.set(name, { ...newVariant(broken), state: VariantState.FAILED, error })
  engine.options.log.error({ variant: name, reason: error }, 'cannot be served')
}

function newVariant({ name, model, precision }: Pick<Variant, 'name' | 'model' | 'precision'>): Variant {
  return {
    name,
    model,
    precision,
    device: '',
    maxModelLen: 0,
    vocabSize: 0,
    state: VariantState.UNLOADED,
    error: '',
    weightBytes: 0,
    roundingError: 0,
    neededBytes: 0,
    pinned: false,
    loads: 0,
    origin: '',
    loadMs: 0,
  }
}
