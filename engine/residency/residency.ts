import { VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Config } from '../config/index.js'
import type { DeviceOptions } from '../device.js'
import type { Engine, Variant } from '../engine.js'
import type { NativeAddon } from '../native.js'
import type { Catalog, KnownVariant } from './catalog.js'
import { failVariant, loadVariant } from './load.js'
import { findDevices, openDevice, type FoundDevice, type OpenDevice } from './open.js'
import { planResidency, type ResidencyPlan } from './plan.js'

/** Variants that wait for their weights, in loading order, each with its device. */
export type PendingLoads = { variant: Variant; known: KnownVariant; open: OpenDevice }[]

/**
 * Declares every rung to the engine, plans memory and opens the devices. What has no place or no readable file is
 * FAILED here, before any weight is read; the rest is LOADING and returned. Never throws for one variant's fault.
 */
export function prepare(
  engine: Engine,
  config: Config,
  catalog: Catalog,
  addon: NativeAddon,
  options: DeviceOptions,
): PendingLoads {
  const { log } = engine.options
  const found = findDevices(config.devices, addon, log)
  const plan = planResidency(
    found.map(({ budget }) => budget),
    catalog.known.map(({ demand }) => demand),
  )
  const open = openDevices(engine, found, plan, catalog, addon, options)
  declare(engine, catalog, plan)
  const pending: PendingLoads = []
  for (const known of catalog.known) {
    const variant = engine.variants.get(known.name)
    const device = open.get(plan.placements.get(known.name) ?? '')
    if (!variant) continue
    if (device) pending.push({ variant, known, open: device })
    else failVariant(variant, plan.refusals.get(known.name) ?? `device ${variant.device} could not be opened`, log)
  }
  for (const { name, error } of catalog.broken) {
    const variant = engine.variants.get(name)
    if (variant) failVariant(variant, error, log)
  }
  engine.changed()
  return pending
}

/** Loads one after the other, best rung of the first model first. Never rejects. */
export async function loadAll(engine: Engine, config: Config, pending: PendingLoads): Promise<void> {
  for (const { variant, known, open } of pending) await loadVariant(engine, variant, known, open, config.scheduler)
}

function openDevices(
  engine: Engine,
  found: readonly FoundDevice[],
  plan: ResidencyPlan,
  catalog: Catalog,
  addon: NativeAddon,
  options: DeviceOptions,
): Map<string, OpenDevice> {
  const open = new Map<string, OpenDevice>()
  for (const device of found) {
    const { id } = device.config
    const placed = catalog.known.filter(({ name }) => plan.placements.get(name) === id)
    if (placed.length === 0) continue
    const largest = Math.max(...placed.map(({ blockBytes }) => blockBytes))
    try {
      const opened = openDevice(device, plan.kvBytes.get(id) ?? 0, largest, addon, options)
      engine.devices.push(opened.device)
      open.set(id, opened)
    } catch (error) {
      engine.options.log.error({ err: error, device: id }, 'the device could not be opened')
    }
  }
  return open
}

/** In the order of the file, as clients list them. */
function declare(engine: Engine, catalog: Catalog, plan: ResidencyPlan): void {
  for (const { name, model, precision } of catalog.rungs) {
    const known = catalog.known.find((candidate) => candidate.name === name)
    engine.variants.set(name, {
      name,
      model,
      precision,
      device: plan.placements.get(name) ?? '',
      maxModelLen: known?.maxModelLen ?? 0,
      vocabSize: known?.vocabSize ?? 0,
      state: VariantState.LOADING,
      error: '',
      weightBytes: 0,
      neededBytes: known ? known.demand.weightBytes + known.demand.workspaceBytes : 0,
      pinned: known?.pinned ?? false,
      loads: 0,
    })
  }
}
