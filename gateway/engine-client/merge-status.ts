/** Several engines seen as one: what each says of itself, put together. Pure. */
import {
  type DeviceStatus,
  type EngineStatus,
  VariantState,
  type VariantStatus,
} from '../../proto/gen/edgeshift/v1/engine.js'

/** What the engines say together, and which of them has what. */
export interface MergedStatus {
  status: EngineStatus
  offers: Offers
}

/** By variant, the engines that know it: who serves it soonest in front. */
export type Offers = ReadonlyMap<string, readonly Offer[]>

/** Of one variant, what one engine says and can give it. */
export interface Offer {
  /** By its place among the engines of the box. */
  engine: number
  variant: VariantStatus
  freeBytes: number
}

/**
 * The statuses of those engines that have one, by place; undefined where none has. The only one there is stays itself, unless
 * another is `awaited`: then a variant that nobody can take at once is on its way, as it may come with that engine.
 */
export function mergeStatus(
  statuses: readonly (EngineStatus | undefined)[],
  awaited: boolean,
): MergedStatus | undefined {
  const told = statuses.flatMap((status, engine) => (status ? [{ status, engine }] : []))
  const [first, ...others] = told
  if (!first) return undefined
  const offers = new Map<string, Offer[]>()
  for (const offer of told.flatMap(offersOf)) {
    const { name } = offer.variant
    offers.set(name, [...(offers.get(name) ?? []), offer])
  }
  for (const [name, found] of offers) {
    const sorted = withPins(found.toSorted(compareOffers))
    offers.set(name, awaited && sorted.every(isLater) ? sorted.map(asOnItsWay) : sorted)
  }
  if (others.length === 0 && !awaited) return { status: first.status, offers }
  const variants = [...offers.values()].flatMap(([best]) => best?.variant ?? [])
  const all = told.map(({ status }) => status)
  const sum = (of: (status: EngineStatus) => number): number => all.reduce((total, status) => total + of(status), 0)
  return {
    status: {
      engineVersion: first.status.engineVersion,
      variants,
      running: sum(({ running }) => running),
      waiting: sum(({ waiting }) => waiting),
      maxWaiting: sum(({ maxWaiting }) => maxWaiting),
      devices: all.flatMap(({ devices }) => devices),
      configError: all.find(({ configError }) => configError !== '')?.configError ?? '',
      configDigest: all.every(({ configDigest }) => configDigest === first.status.configDigest)
        ? first.status.configDigest
        : '',
      packed: mergePacked(all),
      configWaiting: [...new Set(all.flatMap(({ configWaiting }) => configWaiting))],
    },
    offers,
  }
}

function offersOf({ status, engine }: { status: EngineStatus; engine: number }): Offer[] {
  const freeBytes = status.devices.reduce((sum, device) => sum + freeBytesOf(device), 0)
  const [device, ...others] = status.devices
  // Where an engine has only one, that is the device of what it has not loaded yet, too.
  const only = others.length === 0 ? device?.id : undefined
  return status.variants.map((variant) => ({
    engine,
    variant: variant.device === '' && only !== undefined ? { ...variant, device: only } : variant,
    freeBytes,
  }))
}

/** A variant is pinned where any engine keeps it. */
function withPins(offers: Offer[]): Offer[] {
  if (!offers.some(({ variant }) => variant.pinned)) return offers
  return offers.map((offer) =>
    offer.variant.pinned ? offer : { ...offer, variant: { ...offer.variant, pinned: true } },
  )
}

const isLater = ({ variant }: Offer): boolean => rank(variant) > AT_ONCE

function asOnItsWay(offer: Offer): Offer {
  return { ...offer, variant: { ...offer.variant, state: VariantState.LOADING } }
}

function freeBytesOf({ budgetBytes, ledger }: DeviceStatus): number {
  return ledger.reduce((free, { bytes, host }) => (host ? free : free - bytes), budgetBytes)
}

/** The last rank of those that a request can have at once. */
const AT_ONCE = 3

/** Where a request is served soonest: resident, on its way, with room, with room to make, busy. */
function rank({ state, loadable, queueable, room }: VariantStatus): number {
  if (state === VariantState.READY) return 0
  if (state === VariantState.LOADING) return 1
  if (loadable) return room.length === 0 ? 2 : 3
  return queueable ? 4 : 5
}

/** By rank; of those alike the one with the shorter queue, then the one with more free memory. */
function compareOffers(a: Offer, b: Offer): number {
  const load = ({ variant }: Offer): number => variant.running + variant.waiting
  return rank(a.variant) - rank(b.variant) || load(a) - load(b) || b.freeBytes - a.freeBytes
}

function mergePacked(all: readonly EngineStatus[]): EngineStatus['packed'] {
  const packed = all.flatMap((status) => status.packed ?? [])
  if (packed.length === 0) return undefined
  const events = new Map<string, number>()
  for (const [name, count] of packed.flatMap((one) => [...one.events]))
    events.set(name, (events.get(name) ?? 0) + count)
  const sum = (key: 'bytes' | 'budgetBytes' | 'files'): number => packed.reduce((total, one) => total + one[key], 0)
  return { bytes: sum('bytes'), budgetBytes: sum('budgetBytes'), files: sum('files'), events }
}
