import type { Config, DeviceConfig, ModelConfig } from '../config/index.js'
import type { DeviceOptions } from '../device.js'
import type { Engine } from '../engine.js'
import type { NativeAddon } from '../native.js'
import { type Catalog, readCatalog } from './catalog.js'
import { type ConfigDiff, devicesInUse, diffConfig, type Opened } from './diff.js'
import { budgetOf, findDevices } from './open.js'
import type { Residency } from './residency.js'
import { declare, openDevices, preloadOrder } from './setup.js'

/** Applies edits of models.yaml to a running engine: models that did not change are not touched. */
export class Reloader {
  private readonly opened: Opened

  constructor(
    private readonly engine: Engine,
    private readonly residency: Residency,
    private readonly addon: NativeAddon,
    private readonly options: DeviceOptions,
    private config: Config,
    /** Kept up to date: the text assets are made from its cards. */
    private readonly catalog: Catalog,
  ) {
    this.opened = { server: config.server, devices: [] }
    this.noteOpened(config)
  }

  /** What an edit means; nothing is done. */
  plan(next: Config): ConfigDiff {
    const { engine, residency } = this
    const unusable = [...engine.variants.values()].flatMap(({ name, model }) =>
      residency.managed.has(name) ? [] : [model],
    )
    return diffConfig(this.config, next, new Set(unusable), this.opened)
  }

  /**
   * Does what `plan` says: new and changed models are loaded if there is room, but for those that other engines load; what
   * was dropped ends at rest.
   */
  apply(next: Config, diff = this.plan(next), elsewhere?: ReadonlySet<string>): void {
    const { engine, residency } = this
    this.config = next
    this.options.stepTimeoutMs = next.scheduler.step_timeout
    engine.options.maxWaiting = next.scheduler.max_waiting
    engine.options.maxWaitingPerTenant = next.scheduler.max_waiting_per_key
    this.options.interactiveGoalMs = next.scheduler.interactive_goal
    for (const { governor } of engine.devices) governor.goalMs = next.scheduler.interactive_goal
    this.setBudgets(diff)
    for (const id of diff.retired) this.retire(id)
    const devices = devicesInUse(this.opened, next)
    // Before devices are opened: only those are that some model may be on.
    for (const model of next.models) this.update(model, devices)
    const fresh = new Set(diff.fresh)
    const read = readCatalog({ ...next, devices, models: next.models.filter(({ id }) => fresh.has(id)) }, (path) =>
      this.addon.readGguf(path),
    )
    for (const [id, card] of read.cards) this.catalog.cards.set(id, card)
    openDevices(residency, engine, next.devices, [...read.known, ...this.keptKnown()], this.addon, this.options)
    this.noteOpened(next)
    declare(residency, engine, read)
    this.sort(next)
    residency.start(preloadOrder(residency, read.known, elsewhere))
    engine.changed()
  }

  /** A device stays as it was opened, whatever becomes of its entry. */
  private noteOpened({ devices }: Config): void {
    const known = new Set(this.opened.devices.map(({ id }) => id))
    this.opened.devices.push(...devices.filter(({ id }) => this.residency.slots.has(id) && !known.has(id)))
  }

  private setBudgets({ budgets }: ConfigDiff): void {
    for (const found of findDevices(budgets, this.addon, this.engine.options.log)) {
      const slot = this.residency.slots.get(found.config.id)
      slot?.setBudget(budgetOf(found, slot.open.contextBytes).budgetBytes)
    }
  }

  private retire(model: string): void {
    for (const { name } of this.variantsOf(model)) {
      this.residency.retire(name)
      this.engine.variants.delete(name)
    }
    this.catalog.cards.delete(model)
  }

  /** What may be edited of a model without reading it again. */
  private update({ id, placement }: ModelConfig, devices: readonly DeviceConfig[]): void {
    for (const { name } of this.variantsOf(id)) {
      const managed = this.residency.managed.get(name)
      if (!managed) continue
      managed.known.demand.devices = placement.devices ?? devices.map((device) => device.id)
      managed.known.demand.ordered = placement.devices !== undefined
      managed.known.keepAliveMs = placement.keep_alive
      // An operator's pin stays until the file says something new.
      if (managed.known.pinned !== placement.pin) managed.variant.pinned = placement.pin
      managed.known.pinned = placement.pin
    }
  }

  /** Clients list the models in the order of the file. */
  private sort({ models }: Config): void {
    const sorted = models.flatMap(({ id }) => this.variantsOf(id))
    this.engine.variants.clear()
    for (const variant of sorted) this.engine.variants.set(variant.name, variant)
  }

  private variantsOf(model: string) {
    return [...this.engine.variants.values()].filter((variant) => variant.model === model)
  }

  private keptKnown() {
    return Array.from(this.residency.managed.values(), ({ known }) => known)
  }
}
