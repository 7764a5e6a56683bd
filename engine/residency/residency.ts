import { FinishReason, type SequenceError, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { MAX_TIMER_MS } from '../config/index.js'
import type { Engine, Variant, VariantLoader, VariantOutlook } from '../engine.js'
import { type DeviceSlot, expiry, isBusy, type ManagedVariant, type Place } from './device-slot.js'
import { detachVariant, type LoadedVariant, loadVariant } from './load.js'
import type { LedgerWatch } from './driver-watch.js'
import { type LoadPlan, planLoad, planShrink } from './plan.js'
import { ResidencyError } from './residency-error.js'
import { TurnKeeper } from './turns.js'

/** Pause after the second failed load in a row, milliseconds; it doubles up to the limit. */
const FIRST_COOLDOWN_MS = 1000
const MAX_COOLDOWN_MS = 60_000

interface PlanOptions {
  evict?: boolean
  /** Devices that earlier requests wait for. */
  promised?: ReadonlySet<DeviceSlot>
}

/**
 * Carries out what the planner decides: loads what is wanted, unloads what has to go. Requests are served in the order
 * in which somebody first asked; while one waits for room, no later one takes it. Owns its timer and every place on
 * the devices.
 */
export class Residency implements VariantLoader {
  readonly slots = new Map<string, DeviceSlot>()
  readonly managed = new Map<string, ManagedVariant>()
  /** Hold the ledgers against what is measured, after each load and unload too; none in tests without real memory. */
  readonly watches: LedgerWatch[] = []
  /** Loaded without being asked for as long as there is room, in this order. */
  private preload: string[] = []
  private readonly turns: TurnKeeper
  private timer: NodeJS.Timeout | undefined
  private reviewing = false
  private retired = 0
  private stopped = false

  constructor(
    private readonly engine: Engine,
    turnMs?: number,
  ) {
    this.turns = new TurnKeeper(engine, turnMs)
    engine.loader = this
  }

  /** Starts to load what there is room for, in this order, beside what is asked for. */
  start(preload: readonly string[]): void {
    this.preload.push(...preload)
    for (const name of preload) {
      const managed = this.managed.get(name)
      if (managed && !managed.place) managed.variant.state = VariantState.LOADING
    }
    this.review()
  }

  /** Resolves when nothing is being loaded or unloaded any more. */
  async settled(): Promise<void> {
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve))
      const changes = [...this.slots.values()].flatMap(({ change }) => change ?? [])
      if (changes.length === 0) return
      await Promise.all(changes)
    }
  }

  /** Starts nothing new; resolves when what is under way has ended. Residents stay. */
  async stop(): Promise<void> {
    this.stopped = true
    clearTimeout(this.timer)
    for (const watch of this.watches) watch.close()
    await this.settled()
  }

  /** Stops and unloads everything; no sequence may be left. */
  async unloadAll(): Promise<void> {
    await this.stop()
    for (const slot of this.slots.values()) this.clear(slot, slot.order.oldestFirst())
    await this.settled()
  }

  review(): void {
    if (this.reviewing || this.stopped) return
    this.reviewing = true
    // Once for everything that happens now, and never in the middle of it.
    queueMicrotask(() => {
      this.reviewing = false
      if (!this.stopped) this.decide()
    })
  }

  touch(variant: Variant): void {
    const managed = this.managed.get(variant.name)
    if (!managed || managed.variant !== variant) return
    managed.usedAt = this.engine.options.clock()
    managed.place?.slot.order.touch(managed.place.key)
  }

  isDraining(variant: Variant): boolean {
    return this.managed.get(variant.name)?.drainingSince !== undefined
  }

  refusal(variant: Variant): SequenceError | undefined {
    const { loadable, queueable, reason, retryAfterMs } = this.outlook(variant)
    if (loadable || queueable || variant.state === VariantState.LOADING) return undefined
    return { code: 'engine_unavailable', message: `${variant.name} is not loaded: ${reason}`, retryAfterMs }
  }

  outlook(variant: Variant): VariantOutlook {
    const outlook = { loadable: false, queueable: false, room: [], reason: variant.error, retryAfterMs: 0 }
    const managed = this.managed.get(variant.name)
    if (!managed || managed.place) return outlook
    const wait = managed.retryAt - this.engine.options.clock()
    if (wait > 0) return { ...outlook, retryAfterMs: Math.ceil(wait) }
    const plan = this.plan(managed)
    if (plan.kind === 'refuse') return { ...outlook, reason: plan.reason }
    if (plan.kind === 'load') return { ...outlook, loadable: true, room: plan.evict }
    return plan.kind === 'wait'
      ? { ...outlook, queueable: true, room: [...plan.evict, ...plan.drain, ...plan.rest] }
      : outlook
  }

  /** Loads a variant, at the cost of idle ones if need be. Rejects with a ResidencyError. */
  async load(name: string): Promise<void> {
    for (;;) {
      const managed = this.find(name)
      const { place } = managed
      if (place?.loaded) return
      const plan: LoadPlan = place ? { kind: 'resident' } : this.plan(managed)
      if (plan.kind === 'refuse') throw new ResidencyError('does_not_fit', `${name} ${plan.reason}`)
      const slot = place?.slot ?? (plan.kind === 'resident' ? undefined : this.slots.get(plan.device))
      if (plan.kind === 'wait' && !slot?.change) {
        throw new ResidencyError('busy', `${name} would have to wait for ${plan.drain.join(', ') || 'KV memory'}`)
      }
      const starts = plan.kind === 'load' && slot
      if (starts) this.bring(managed, slot, plan)
      // Without a change nothing would be different the next time around.
      if (!slot?.change) throw new ResidencyError('load_failed', `${name} is not being loaded`)
      await slot.change
      if (starts && !managed.place) throw new ResidencyError('load_failed', `${name}: ${managed.variant.error}`)
    }
  }

  /** Unloads an idle variant; no effect on one that is not resident. Rejects with a ResidencyError. */
  async unload(name: string): Promise<void> {
    for (;;) {
      const { place, variant } = this.find(name)
      if (!place) return
      if (variant.pinned) throw new ResidencyError('pinned', `${name} is pinned`)
      if (isBusy(place)) throw new ResidencyError('busy', `${name} is ${place.loaded ? 'at work' : 'being loaded'}`)
      if (!place.slot.change) this.clear(place.slot, [place])
      await place.slot.change
    }
  }

  /** Keeps a variant, once loaded, or lets it go again. Rejects with a ResidencyError. */
  async pin(name: string, pinned: boolean): Promise<void> {
    this.find(name).variant.pinned = pinned
    this.engine.changed()
    this.review()
  }

  /** Forgets a variant: what runs of it ends by itself, what waits is told to come again. */
  retire(name: string): void {
    const managed = this.managed.get(name)
    this.managed.delete(name)
    this.disappoint(name, 'it was replaced', 'loading')
    if (!managed?.place) return
    const { place } = managed
    place.slot.order.delete(place.key)
    place.key = `${name} (replaced ${++this.retired})`
    place.slot.order.set(place.key, place)
    this.review()
  }

  private find(name: string): ManagedVariant {
    const managed = this.managed.get(name)
    if (managed) return managed
    const variant = this.engine.variants.get(name)
    if (variant) throw new ResidencyError('load_failed', `${name} cannot be loaded: ${variant.error}`)
    throw new ResidencyError('not_found', `there is no variant ${JSON.stringify(name.slice(0, 200))}`)
  }

  /** A device that is promised to an earlier request is as good as being changed. */
  private plan(managed: ManagedVariant, { evict = true, promised }: PlanOptions = {}): LoadPlan {
    const states = Array.from(this.slots.values(), (slot) => {
      const state = slot.state()
      return promised?.has(slot) ? { ...state, changing: true } : state
    })
    return planLoad(states, managed.known.demand, { evict, lastDevice: managed.lastDevice })
  }

  /** One round: let go of what is not needed, then make room for who waits, first come, first served. */
  private decide(): void {
    const drains = [...this.slots.values()].flatMap((slot) => this.release(slot))
    const promised = new Set<DeviceSlot>()
    for (const name of this.engine.lobby.wanted()) drains.push(...this.serve(name, promised))
    this.preloadNext(promised)
    const now = this.engine.options.clock()
    this.arm(this.turns.drain(drains, now), now)
  }

  /** Starts the load that requests wait for, or promises it a device; returns who has to come to rest for it. */
  private serve(name: string, promised: Set<DeviceSlot>): Place[] {
    const managed = this.managed.get(name)
    if (managed?.place) return []
    if (!managed || managed.retryAt > this.engine.options.clock()) {
      this.disappoint(name, managed?.variant.error ?? 'it is not configured any more')
      return []
    }
    const plan = this.plan(managed, { promised })
    if (plan.kind === 'refuse') this.disappoint(name, plan.reason)
    if (plan.kind === 'refuse' || plan.kind === 'resident') return []
    const slot = this.slotOf(plan.device)
    if (plan.kind === 'load') {
      this.bring(managed, slot, plan)
      return []
    }
    if (plan.drain.length === 0 && !slot.change && !promised.has(slot)) slot.setKvBytes(plan.kvBytes)
    promised.add(slot)
    return slot.placesOf([...plan.evict, ...plan.drain, ...plan.rest])
  }

  private preloadNext(promised: ReadonlySet<DeviceSlot>): void {
    this.preload = this.preload.filter((name) => {
      const managed = this.managed.get(name)
      if (!managed || managed.place) return false
      const plan = this.plan(managed, { promised, evict: false })
      if (plan.kind === 'load') this.bring(managed, this.slotOf(plan.device), plan)
      if (plan.kind === 'refuse') this.setState(managed, VariantState.UNLOADED)
      return plan.kind === 'wait'
    })
  }

  /** Unloads what nobody has used for long, what was replaced, and what is above the budget; returns who has to rest. */
  private release(slot: DeviceSlot): Place[] {
    if (slot.change) return []
    // Also where a request that KV memory was kept free for has gone; whoever still waits has it lowered again at once.
    slot.fitKv()
    const now = this.engine.options.clock()
    const expired = slot.order.oldestFirst().filter((place) => expiry(place) <= now)
    if (expired.length > 0) this.clear(slot, expired)
    if (slot.change || !slot.overBudget) return []
    const { evict, drain, rest } = planShrink(slot.state())
    if (evict.length > 0) this.clear(slot, slot.placesOf(evict))
    return slot.placesOf([...drain, ...rest])
  }

  /** Ends what waits for a variant that cannot be loaded. */
  private disappoint(name: string, reason: string, code = 'engine_unavailable'): void {
    const now = this.engine.options.clock()
    const error = { code, message: `${name} is not loaded: ${reason}`, retryAfterMs: 0 }
    for (const sequence of this.engine.lobby) {
      if (sequence.submit.variant !== name) continue
      const started = sequence.firstScheduledAt !== undefined
      this.engine.lobby.end(sequence, started ? FinishReason.ERROR : FinishReason.REJECTED, now, error)
    }
  }

  private bring(managed: ManagedVariant, slot: DeviceSlot, plan: LoadPlan & { kind: 'load' }): void {
    const { variant, known } = managed
    const leaving = slot.placesOf(plan.evict).map((place) => this.detach(place))
    const bytes = known.demand.weightBytes + known.demand.workspaceBytes
    const place: Place = { key: known.name, managed, slot, bytes, loaded: undefined, loadedAt: 0, loadMs: 0 }
    managed.place = place
    variant.device = slot.id
    slot.order.set(place.key, place)
    slot.setKvBytes(plan.kvBytes)
    this.setState(managed, VariantState.LOADING)
    this.change(slot, [...leaving, () => this.makeResident(place)])
  }

  private clear(slot: DeviceSlot, places: readonly Place[]): void {
    this.change(
      slot,
      places.map((place) => this.detach(place)),
    )
  }

  private change(slot: DeviceSlot, parts: readonly (() => Promise<void>)[]): void {
    const run = async (): Promise<void> => {
      await this.perform(slot, parts)
      slot.change = undefined
      slot.fitKv()
      for (const watch of this.watches) void watch.check()
      this.engine.changed()
      this.review()
    }
    slot.change = run()
    this.engine.changed()
  }

  /** Unloads and loads in order; one that fails does not keep the others from being done. */
  private async perform(slot: DeviceSlot, parts: readonly (() => Promise<void>)[]): Promise<void> {
    for (const part of parts) {
      try {
        await part()
      } catch (error) {
        this.engine.options.log.error({ err: error, device: slot.id }, 'a load or unload failed')
      }
    }
  }

  private async makeResident(place: Place): Promise<void> {
    const { managed, slot } = place
    const { clock, log } = this.engine.options
    const startedAt = clock()
    try {
      place.loaded = await loadVariant(managed.known, slot.open)
    } catch (error) {
      slot.order.delete(place.key)
      managed.place = undefined
      this.fail(managed, error)
      return
    }
    place.loadedAt = clock()
    place.loadMs = place.loadedAt - startedAt
    const { weightBytes, origin: from } = place.loaded.model
    log.info({ variant: managed.variant.name, weightBytes, from, ms: Math.round(place.loadMs) }, 'loaded')
    this.serveFrom(place, place.loaded)
  }

  private serveFrom(place: Place, { model, resident }: LoadedVariant): void {
    const { managed, slot } = place
    const { variant, known } = managed
    const { weightBytes, workspaceBytes, roundingError, origin } = model
    place.bytes = weightBytes + workspaceBytes
    slot.order.set(place.key, place)
    // What it really took counts from now on; on another device it may be more, so there the estimate stays a bound.
    const { demand } = known
    const alone = demand.devices.length === 1
    demand.weightBytes = alone ? weightBytes : Math.max(demand.weightBytes, weightBytes)
    demand.workspaceBytes = alone ? workspaceBytes : Math.max(demand.workspaceBytes, workspaceBytes)
    managed.failures = 0
    managed.lastDevice = slot.id
    managed.usedAt = place.loadedAt
    const { bytes: neededBytes, loadMs } = place
    const facts = { weightBytes, roundingError, neededBytes, origin, loadMs, loads: variant.loads + 1 }
    Object.assign(variant, { resident, ...facts })
    this.setState(managed, VariantState.READY)
    if (this.managed.get(variant.name) !== managed) return
    for (const sequence of this.engine.lobby.take(variant.name)) this.engine.place(sequence, variant)
  }

  private fail(managed: ManagedVariant, error: unknown): void {
    const { clock, log } = this.engine.options
    const { variant } = managed
    managed.failures++
    const cooldown = Math.min(MAX_COOLDOWN_MS, FIRST_COOLDOWN_MS * 2 ** (managed.failures - 2))
    managed.retryAt = managed.failures < 2 ? 0 : clock() + cooldown
    this.setState(managed, VariantState.FAILED, error instanceof Error ? error.message : String(error))
    log.error({ variant: variant.name, reason: variant.error, failures: managed.failures }, 'not loaded')
    if (this.managed.get(variant.name) === managed) this.disappoint(variant.name, variant.error)
  }

  /** Stops scheduling an idle variant; what is returned frees its memory. */
  private detach(place: Place): ReturnType<typeof detachVariant> {
    const { managed, slot, loaded } = place
    if (!loaded) throw new Error('a variant that is being loaded cannot be unloaded')
    const detached = detachVariant(loaded, slot.open.device)
    slot.order.delete(place.key)
    managed.place = undefined
    managed.variant.resident = undefined
    managed.drainingSince = undefined
    this.setState(managed, VariantState.UNLOADED)
    this.engine.options.log.info({ variant: managed.variant.name, device: slot.id }, 'unloaded')
    return detached
  }

  private setState({ variant }: ManagedVariant, state: VariantState, error = ''): void {
    variant.state = state
    variant.error = error
    this.engine.changed()
  }

  private slotOf(device: string): DeviceSlot {
    const slot = this.slots.get(device)
    if (!slot) throw new Error(`no device ${device}`)
    return slot
  }

  /** Looks again when the next idle variant expires, a turn ends or a failed one may be tried again. */
  private arm(turnEnds: number, now: number): void {
    clearTimeout(this.timer)
    const places = [...this.slots.values()].flatMap((slot) => (slot.change ? [] : slot.order.oldestFirst()))
    const retries = Array.from(this.managed.values(), ({ retryAt }) => (retryAt > now ? retryAt : Infinity))
    const next = Math.min(turnEnds, ...places.map(expiry), ...retries)
    if (next === Infinity) return
    this.timer = setTimeout(
      () => {
        this.engine.changed()
        this.review()
      },
      Math.min(MAX_TIMER_MS, Math.max(1, Math.ceil(next - now))),
    )
    this.timer.unref()
  }
}
