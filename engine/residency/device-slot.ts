import type { Variant } from '../engine.js'
import type { KnownVariant } from './catalog.js'
import type { LoadedVariant } from './load.js'
import type { OpenDevice } from './open.js'
import { ResidencyOrder } from './order.js'
import { kvTarget, minKvBytes } from './plan.js'
import type { DeviceState, ResidentState } from './state.js'

/** A variant of the configuration whose files are understood, and what became of it. */
export interface ManagedVariant {
  readonly variant: Variant
  known: KnownVariant
  /** Set while it is on a device or on its way there. */
  place: Place | undefined
  lastDevice: string | undefined
  /** Loads that failed in a row; the next one is not tried before `retryAt`. */
  failures: number
  retryAt: number
  usedAt: number
  /** Since when it takes no new sequences. */
  drainingSince: number | undefined
}

/** A variant's place on a device. */
export interface Place {
  /** The variant's name, or another one for a variant that was replaced and still has sequences. */
  key: string
  readonly managed: ManagedVariant
  readonly slot: DeviceSlot
  /** Weights and workspace, estimated while it is being loaded. */
  bytes: number
  /** Undefined while it is being loaded. */
  loaded: LoadedVariant | undefined
  loadedAt: number
  /** How long the load took, milliseconds. */
  loadMs: number
}

/** An open device with what is on it; at most one load or unload is under way. */
export class DeviceSlot {
  readonly order = new ResidencyOrder<Place>()
  /** Resolves when the load or unload under way has ended; undefined when there is none. */
  change: Promise<void> | undefined

  constructor(readonly open: OpenDevice) {}

  get id(): string {
    return this.open.device.description.id
  }

  /** As the planner sees it. */
  state(): DeviceState {
    const { arena } = this.open.device
    const { slabBytes } = arena
    return {
      ...this.open.budget,
      slabBytes,
      fixedKvBytes: this.open.fixedKvBytes,
      changing: this.change !== undefined,
      residents: this.order.oldestFirst().map((place) => residentState(place, slabBytes)),
    }
  }

  /** The places with these keys, in their order. */
  placesOf(keys: readonly string[]): Place[] {
    return keys.flatMap((key) => this.order.get(key) ?? [])
  }

  /** Lets the KV arena have so many bytes; what sequences hold above that goes when they end, and is counted until then. */
  setKvBytes(bytes: number): void {
    const { arena, ledger } = this.open.device
    if (this.open.fixedKvBytes === undefined) arena.setLimit(Math.floor(bytes / arena.slabBytes))
    ledger.settle(this.open.kvEntry, arena.bytes)
  }

  /** Gives the KV arena what is left beside the variants that are here. */
  fitKv(): void {
    this.setKvBytes(kvTarget(this.state()))
  }

  /** The ledger holds more than the budget: it was lowered, or sequences keep KV memory that is promised to a load. */
  get overBudget(): boolean {
    return this.open.device.ledger.freeBytes < 0
  }

  /** Takes effect at once for KV memory; variants that are too much now go at the next review. */
  setBudget(budgetBytes: number): void {
    this.open.budget = { ...this.open.budget, budgetBytes }
    this.open.device.ledger.budgetBytes = budgetBytes
    this.fitKv()
  }
}

/** Has sequences, or is being loaded for some. */
export function isBusy({ loaded }: Place): boolean {
  return loaded === undefined || loaded.resident.scheduler.size > 0
}

/** When an idle variant is unloaded; Infinity while it is at work or pinned. */
export function expiry(place: Place): number {
  const { variant, known, usedAt } = place.managed
  if (isBusy(place)) return Infinity
  if (place.key !== variant.name) return 0
  return variant.pinned ? Infinity : usedAt + known.keepAliveMs
}

function residentState(place: Place, slabBytes: number): ResidentState {
  const { known, variant } = place.managed
  const { key: name, bytes, loaded, loadedAt } = place
  const minKv = minKvBytes(known.demand, slabBytes)
  const usedKv = (loaded?.resident.scheduler.pool.usedSlabs() ?? 0) * slabBytes
  const pinned = variant.pinned && variant.name === name
  return { name, bytes, minKvBytes: minKv, usedKvBytes: usedKv, pinned, busy: isBusy(place), loadedAt }
}
