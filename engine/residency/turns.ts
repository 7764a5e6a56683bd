import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Engine } from '../engine.js'
import { type DeviceSlot, isBusy, type ManagedVariant, type Place } from './device-slot.js'

/** A variant that others wait for serves at least this long after its load, milliseconds. */
const TURN_MS = 2000
/** And at least so many times as long as its load took, so that loading never becomes most of the work. */
const TURN_LOADS = 1
/** Then its running sequences may go on for so many turns; after that they are preempted and wait for the next load. */
const GRACE_TURNS = 5

const REPLACED = { code: 'engine_failed', message: 'the model was replaced', retryAfterMs: 0 }

/**
 * Brings busy variants to rest for those that wait for their memory: new requests stay in the lobby, those that have
 * not run yet go back there, running ones end. So models that do not fit together take turns.
 */
export class TurnKeeper {
  private readonly draining = new Set<ManagedVariant>()

  constructor(
    private readonly engine: Engine,
    private readonly turnMs = TURN_MS,
  ) {}

  /**
   * These shall come to rest or stay at rest, all others serve (again). Returns when to look again if nothing else
   * happens: Infinity when nothing depends on time.
   */
  drain(places: readonly Place[], now: number): number {
    const wanted = new Set(places.map(({ managed }) => managed))
    for (const managed of this.draining) if (!wanted.has(managed)) this.release(managed)
    const slots = [...new Set(places.map(({ slot }) => slot))]
    return Math.min(Infinity, ...slots.map((slot) => this.drainOn(slot, places, now)))
  }

  /** Those on one device come to rest together, when the last of them has had its turn; other devices' turns are their own. */
  private drainOn(slot: DeviceSlot, all: readonly Place[], now: number): number {
    const places = all.filter((place) => place.slot === slot)
    const turnEnds = Math.max(...places.filter(isBusy).map((place) => place.loadedAt + this.turnOf(place)))
    if (now < turnEnds) return turnEnds
    return Math.min(Infinity, ...places.map((place) => this.hurry(place, now)))
  }

  /** Returns when its running sequences are preempted. */
  private hurry(place: Place, now: number): number {
    const { managed, loaded } = place
    if (!loaded) return Infinity
    managed.drainingSince ??= now
    this.draining.add(managed)
    const preemptAt = managed.drainingSince + GRACE_TURNS * this.turnOf(place)
    const { scheduler } = loaded.resident
    if (place.key !== managed.variant.name) {
      // Its successor may understand other tokens: what still runs cannot go on there.
      if (now >= preemptAt) scheduler.endAll(FinishReason.ERROR, now, REPLACED)
      return now >= preemptAt ? Infinity : preemptAt
    }
    const withdrawn = scheduler.withdraw(now >= preemptAt)
    for (const sequence of withdrawn) this.engine.lobby.add(sequence)
    // Nothing ends here that would tell: it is at rest now.
    if (withdrawn.length > 0 && scheduler.size === 0) this.engine.loader?.review()
    return now >= preemptAt ? Infinity : preemptAt
  }

  private release(managed: ManagedVariant): void {
    this.draining.delete(managed)
    managed.drainingSince = undefined
    if (!managed.place || this.engine.variants.get(managed.variant.name) !== managed.variant) return
    for (const sequence of this.engine.lobby.take(managed.variant.name)) this.engine.place(sequence, managed.variant)
  }

  private turnOf({ loadMs }: Place): number {
    return Math.max(this.turnMs, TURN_LOADS * loadMs)
  }
}
