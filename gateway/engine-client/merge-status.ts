/** Several engines seen as one: what each says of itself, put together. Pure. */
import {
  type DeviceStatus,
  type EngineStatus,
  VariantState,
  type VariantStatus,
} from '../../proto/gen/edgeshift/v1/engine.js'

/** What the engines say together, and which of them each variant's requests go to, by place in the list. */
export interface MergedStatus {
  status: EngineStatus
  engineOf: ReadonlyMap<string, number>
}

/** Of one variant, what one engine says and can give it. */
interface Offer {
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
  const best = new Map<string, Offer>()
  for (const { status, engine } of told) {
    const freeBytes = status.devices.reduce((sum, device) => sum + freeBytesOf(device), 0)
    for (const variant of status.variants) {
      const offer = { engine, variant, freeBytes }
      const other = best.get(variant.name)
      if (!other || isBetter(offer, other)) best.set(variant.name, offer)
    }
  }
  const engineOf = new Map(Array.from(best.values(), ({ variant, engine }) => [variant.name, engine]))
  if (others.length === 0 && !awaited) return { status: first.status, engineOf }
  const variants = Array.from(best.values(), ({ variant }) =>
    awaited && rank(variant) > AT_ONCE ? { ...variant, state: VariantState.LOADING } : variant,
  )
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
    engineOf,
  }
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
function isBetter(a: Offer, b: Offer): boolean {
  const load = ({ variant }: Offer): number => variant.running + variant.waiting
  const order = rank(a.variant) - rank(b.variant) || load(a) - load(b) || b.freeBytes - a.freeBytes
  return order < 0
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
