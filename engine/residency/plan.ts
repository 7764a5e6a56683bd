/** Residency policy: what has to go so that a variant can come. Pure; executed by residency.ts. */

import { refusal } from './refusal.js'
import type { DeviceBudget, DeviceState, ResidentState, VariantDemand } from './state.js'

/**
 * How to make a variant resident: at once, after others have come to rest, or not at all. `kvBytes`: what the KV arena
 * may have beside it.
 */
export type LoadPlan =
  | { kind: 'resident' }
  | { kind: 'load'; device: string; evict: string[]; kvBytes: number }
  /** Nobody has to make room while the device is being changed. */
  | ({ kind: 'wait'; device: string; kvBytes: number } & Room)
  | { kind: 'refuse'; reason: string }

/** Who has to make room on a device; nobody is named twice. */
export interface Room {
  /** Idle variants. Where they wait for busy ones they must stay idle, or they never are all at once. */
  evict: string[]
  /** Busy variants, which have to come to rest first. */
  drain: string[]
  /**
   * Busy variants that stay, pinned ones too, but use KV memory that is needed. Blocks that end are taken again by those
   * at work, so that no slab ever comes free: they have to come to rest until enough of them has.
   */
  rest: string[]
}

/** Share of a budget that the KV arena may take beyond what one sequence needs. */
const KV_SHARE = 0.5

/** KV slabs that one sequence of the largest length takes, in bytes; Infinity when a block is larger than a slab. */
export function minKvBytes(demand: Pick<VariantDemand, 'blockBytes' | 'sequenceKvBytes'>, slabBytes: number): number {
  const perSlab = Math.floor(slabBytes / demand.blockBytes)
  const blocks = Math.ceil(demand.sequenceKvBytes / demand.blockBytes)
  return perSlab === 0 ? Infinity : Math.ceil(blocks / perSlab) * slabBytes
}

/** Bytes of KV memory beside these residents: what is left, up to a share of the budget, in whole slabs. */
export function kvTarget(
  device: DeviceState,
  staying: readonly ResidentState[] = device.residents,
  coming?: Pick<ResidentState, 'bytes' | 'minKvBytes'>,
): number {
  const residents = coming ? [...staying, coming] : staying
  if (device.fixedKvBytes !== undefined) return device.fixedKvBytes
  const spare = Math.min(
    Math.floor(device.budgetBytes * KV_SHARE),
    device.budgetBytes - device.overheadBytes - total(residents),
  )
  return Math.max(largestKv(residents), Math.floor(spare / device.slabBytes) * device.slabBytes, 0)
}

/**
 * How to make a variant resident. Only idle unpinned variants are evicted, least recently used first and none that
 * could stay. With `evict` false only free memory counts. Among devices: the fewest bytes evicted, then the order of
 * preference, then `lastDevice` (its files are in the host's cache), then the most free memory.
 */
export function planLoad(
  devices: readonly DeviceState[],
  demand: VariantDemand,
  { evict = true, lastDevice }: { evict?: boolean; lastDevice?: string | undefined } = {},
): LoadPlan {
  if (devices.some(({ residents }) => residents.some(({ name }) => name === demand.name))) return { kind: 'resident' }
  const candidates = demand.devices.flatMap((id) => devices.find((device) => device.id === id) ?? [])
  const options = candidates.flatMap((device, index) => optionOn(device, demand, evict, index) ?? [])
  options.sort(
    (a, b) =>
      Number(a.waits) - Number(b.waits) ||
      a.lostBytes - b.lostBytes ||
      (demand.ordered ? a.index - b.index : 0) ||
      Number(b.device.id === lastDevice) - Number(a.device.id === lastDevice) ||
      b.freeBytes - a.freeBytes,
  )
  const [best] = options
  if (!best) return { kind: 'refuse', reason: refusal(demand, candidates) }
  const { waits, room, kvBytes } = best
  const device = best.device.id
  return waits ? { kind: 'wait', device, ...room, kvBytes } : { kind: 'load', device, evict: room.evict, kvBytes }
}

/**
 * Bytes for a KV arena that is taken once and for all: what the variants that fit together, in this order, leave, up to
 * a share of the budget. Enough for a full sequence of each, and no more than the largest variant leaves by itself.
 */
export function planArena(
  { budgetBytes, overheadBytes }: DeviceBudget,
  demands: readonly VariantDemand[],
  slabBytes: number,
): number {
  let taken = overheadBytes
  let minKv = 0
  let largest = 0
  for (const demand of demands) {
    const bytes = bytesOf(demand)
    const kv = Math.max(minKv, minKvBytes(demand, slabBytes))
    if (Math.max(overheadBytes + Math.max(bytes, largest), taken) + kv > budgetBytes) continue
    if (taken + bytes + kv <= budgetBytes) taken += bytes
    minKv = kv
    largest = Math.max(largest, bytes)
  }
  const spare = Math.min(Math.floor(budgetBytes * KV_SHARE), budgetBytes - taken, budgetBytes - overheadBytes - largest)
  return Math.max(minKv, Math.floor(spare / slabBytes) * slabBytes, 0)
}

/**
 * What has to go so that a device keeps within its budget: idle variants at once, busy ones when they are at rest, and
 * the KV memory that those who stay use above it.
 */
export function planShrink(device: DeviceState): Room {
  const idle = leave(device, device.residents.filter(isIdle), 0, 0, usedKv(device.residents))
  if (idle) return roomOf(idle)
  const all = device.residents.filter(({ pinned }) => !pinned)
  const leaving = leave(device, all.filter(isIdle).concat(busyOf(device)), 0, 0, 0) ?? all
  return roomOf(leaving, rest(device, leaving, 0, 0))
}

/** Why a variant does not fit a device even with everything unpinned gone; undefined when it does. */
export function doesNotFit(device: DeviceState, demand: VariantDemand): string | undefined {
  const pinned = device.residents.filter((resident) => resident.pinned)
  return fits(device, pinned, bytesOf(demand), minKvBytes(demand, device.slabBytes), 0)
    ? undefined
    : refusal(demand, [device])
}

interface Option {
  device: DeviceState
  index: number
  /** Not at once. */
  waits: boolean
  room: Room
  lostBytes: number
  freeBytes: number
  kvBytes: number
}

function optionOn(device: DeviceState, demand: VariantDemand, evict: boolean, index: number): Option | undefined {
  const need = bytesOf(demand)
  const minKv = minKvBytes(demand, device.slabBytes)
  const idle = evict ? device.residents.filter(isIdle) : []
  const usedKvBytes = usedKv(device.residents)
  const going = leave(device, idle, need, minKv, usedKvBytes)
  const option = (room: Room, lost: readonly ResidentState[], waits: boolean): Option => {
    const freeBytes = device.budgetBytes - device.overheadBytes - total(device.residents) + total(lost)
    const staying = device.residents.filter((resident) => !lost.includes(resident))
    const target = kvTarget(device, staying, { bytes: need, minKvBytes: minKv })
    // Blocks in use stay where they are, also when they are more than the share.
    const kvBytes = waits ? target : Math.max(target, usedKvBytes)
    return { device, index, waits, room, lostBytes: total(lost), freeBytes, kvBytes }
  }
  if (going && !device.changing) return option(roomOf(going), going, false)
  if (!evict) return device.changing && going ? option(roomOf([]), [], true) : undefined
  const later = leave(device, idle.concat(busyOf(device)), need, minKv, 0)
  if (!later) return undefined
  // While something is on its way here nobody is asked to make room: it may turn out not to be needed.
  return option(device.changing ? roomOf([]) : roomOf(later, rest(device, later, need, minKv)), later, true)
}

/**
 * Who of `candidates` (first to go first) has to leave so that `need` bytes with `minKv` of KV fit beside `usedKvBytes`;
 * undefined when all of them are not enough. Whoever could stay after all does, the last to go first.
 */
function leave(
  device: DeviceState,
  candidates: readonly ResidentState[],
  need: number,
  minKv: number,
  usedKvBytes: number,
): ResidentState[] | undefined {
  return fewest(candidates, (going) => fits(device, without(device.residents, going), need, minKv, usedKvBytes))
}

/**
 * Who has to come to rest so that, once `leaving` have left, the KV memory in use leaves room for `need` bytes with
 * `minKv` of KV. Where that is never enough, since pinned weights are too much, nobody rests for less than a sequence.
 */
function rest(device: DeviceState, leaving: readonly ResidentState[], need: number, minKv: number): ResidentState[] {
  // Memory that is taken once and for all is not given back.
  if (device.fixedKvBytes !== undefined) return []
  const staying = without(device.residents, new Set(leaving))
  const working = [...busyOf(device), ...device.residents.filter(({ busy, pinned }) => busy && pinned)]
  const candidates = working.filter((resident) => staying.includes(resident) && resident.usedKvBytes > 0)
  const enough = (resting: ReadonlySet<ResidentState>): boolean => {
    const used = usedKv(without(staying, resting))
    return used <= largestKv(staying) || fits(device, staying, need, minKv, used)
  }
  return fewest(candidates, enough) ?? []
}

/**
 * The first of `candidates` that are `enough` together; undefined when all of them are not. Of these, the last first,
 * nobody without whom it is enough too.
 */
function fewest(
  candidates: readonly ResidentState[],
  enough: (chosen: ReadonlySet<ResidentState>) => boolean,
): ResidentState[] | undefined {
  const chosen = new Set<ResidentState>()
  for (const candidate of candidates) {
    if (enough(chosen)) break
    chosen.add(candidate)
  }
  if (!enough(chosen)) return undefined
  for (const candidate of [...chosen].toReversed()) {
    chosen.delete(candidate)
    if (!enough(chosen)) chosen.add(candidate)
  }
  return candidates.filter((candidate) => chosen.has(candidate))
}

function fits(
  device: DeviceState,
  staying: readonly ResidentState[],
  need: number,
  minKv: number,
  usedKvBytes: number,
): boolean {
  const { budgetBytes, overheadBytes, fixedKvBytes } = device
  const smallest = Math.max(minKv, largestKv(staying), usedKvBytes)
  if (fixedKvBytes !== undefined && smallest > fixedKvBytes) return false
  return overheadBytes + total(staying) + need + (fixedKvBytes ?? smallest) <= budgetBytes
}

/** In the order in which they have to make room: who has had its turn the longest first. */
function busyOf(device: DeviceState): ResidentState[] {
  return device.residents.filter(({ busy, pinned }) => busy && !pinned).toSorted((a, b) => a.loadedAt - b.loadedAt)
}

function isIdle({ busy, pinned }: ResidentState): boolean {
  return !busy && !pinned
}

function roomOf(leaving: readonly ResidentState[], resting: readonly ResidentState[] = []): Room {
  const [idle, busy] = [leaving.filter((one) => !one.busy), leaving.filter((one) => one.busy)]
  return { evict: namesOf(idle), drain: namesOf(busy), rest: namesOf(resting) }
}

function without(residents: readonly ResidentState[], gone: ReadonlySet<ResidentState>): ResidentState[] {
  return residents.filter((resident) => !gone.has(resident))
}

function namesOf(residents: readonly ResidentState[]): string[] {
  return residents.map(({ name }) => name)
}

function total(residents: readonly Pick<ResidentState, 'bytes'>[]): number {
  return residents.reduce((sum, { bytes }) => sum + bytes, 0)
}

function usedKv(residents: readonly Pick<ResidentState, 'usedKvBytes'>[]): number {
  return residents.reduce((sum, { usedKvBytes }) => sum + usedKvBytes, 0)
}

function largestKv(residents: readonly Pick<ResidentState, 'minKvBytes'>[]): number {
  return residents.reduce((most, resident) => Math.max(most, resident.minKvBytes), 0)
}

function bytesOf({ weightBytes, workspaceBytes }: VariantDemand): number {
  return weightBytes + workspaceBytes
}
