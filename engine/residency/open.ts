import type { Logger } from 'pino'
import { type DeviceConfig, gigabytesToBytes } from '../config/index.js'
import { EngineDevice, type DeviceOptions } from '../device.js'
import { chooseSlabBytes, KvArena } from '../kv/arena.js'
import { SwapSpace } from '../kv/swap-space.js'
import type { NativeAddon, NativeDevice, NativeDeviceInfo } from '../native.js'
import { type LedgerEntry, MemoryLedger } from './ledger.js'
import type { PackedStore } from './packed-store.js'
import { planArena } from './plan.js'
import type { DeviceBudget, VariantDemand } from './state.js'

/** Threads' stacks, the runtime, the addon; on a GPU graphs, code that is loaded on first use, the ends of allocations. */
const OVERHEAD_BYTES = 64 * 2 ** 20

/**
 * The most that counts as taken on a GPU before anything is opened there. More than that is not a context but other programs,
 * or an engine that has just died and whose memory the driver still holds: that must not be missing until the next start.
 */
const MAX_CONTEXT_BYTES = 2 ** 30

/** Share of the machine's memory that an arena which takes nothing until it is used may span. */
const RESERVED_SHARE = 0.5

/** A configured device that the native side has. */
export interface FoundDevice {
  config: DeviceConfig
  info: NativeDeviceInfo
}

/** A device in use. */
export interface OpenDevice {
  native: NativeDevice
  device: EngineDevice
  budget: DeviceBudget
  /** contextBytesOf it when it was opened. */
  contextBytes: number
  /** What the KV arena takes of the budget. */
  kvEntry: LedgerEntry
  /** The KV arena's bytes where they are taken once and for all. */
  fixedKvBytes: number | undefined
  /** To be told when the device cannot be used any more. */
  lost: (error: unknown) => void
  /** Repacked files of the variants; undefined where none are kept. */
  packed?: PackedStore | undefined
}

/** The configured devices that exist here, with the memory they may use; missing ones are logged. */
export function findDevices(configs: readonly DeviceConfig[], addon: NativeAddon, log: Logger): FoundDevice[] {
  const infos = addon.devices()
  return configs.flatMap((config) => {
    const index = config.kind === 'cuda' ? config.index : 0
    const info = infos.find((candidate) => candidate.kind === config.kind && candidate.index === index)
    if (info) return { config, info }
    log.error({ device: config.id, kind: config.kind }, 'no such device on this machine or in this build')
    return []
  })
}

/**
 * What a device may use, and what of it is taken from the start: `memory_utilization` is a share of all its memory,
 * `memory_gb` a cap on what is put there beside the context.
 */
export function budgetOf({ config, info }: FoundDevice, contextBytes = 0): DeviceBudget {
  const share = config.kind === 'cuda' ? config.memory_utilization : 1
  const cap = config.memory_gb === undefined ? Infinity : gigabytesToBytes(config.memory_gb) + contextBytes
  const budgetBytes = Math.min(cap, Math.floor(info.memoryBytes * share))
  return { id: config.id, budgetBytes, overheadBytes: OVERHEAD_BYTES + contextBytes }
}

/** What is in use on a GPU before anything is opened there: the driver's context of this process, and other programs. */
function contextBytesOf({ kind, index }: NativeDeviceInfo, addon: Pick<NativeAddon, 'usedBytes'>): number {
  return kind === 'cuda' ? Math.min(addon.usedBytes(index), MAX_CONTEXT_BYTES) : 0
}

/**
 * Opens a device with an arena that suits the variants which may be on it. Throws the addon's out_of_memory when the
 * arena cannot be had.
 */
export function openDevice(
  found: FoundDevice,
  demands: readonly VariantDemand[],
  addon: Pick<NativeAddon, 'openDevice' | 'usedBytes'>,
  options: DeviceOptions,
): OpenDevice {
  const { config, info } = found
  const contextBytes = contextBytesOf(info, addon)
  const budget = budgetOf(found, contextBytes)
  const largest = Math.max(...demands.map(({ blockBytes }) => blockBytes))
  const slabBytes = chooseSlabBytes(planArena(budget, demands, largest), largest)
  const kvBytes = planArena(budget, demands, slabBytes)
  const { native, reservedBytes } = openNative(config, info, kvBytes, slabBytes, addon)
  const discard = (offset: number): void => {
    native.discardKv({ offset, bytes: slabBytes }).catch((error: unknown) => {
      options.log.error({ err: error, device: config.id }, 'KV memory could not be given back')
    })
  }
  const arena = new KvArena(reservedBytes, slabBytes, native.elasticKv ? discard : undefined)
  arena.setLimit(kvBytes / slabBytes)
  const ledger = new MemoryLedger(budget.budgetBytes)
  ledger.add('overhead', '', OVERHEAD_BYTES)
  if (contextBytes > 0) ledger.add('context', '', contextBytes)
  const kvEntry = ledger.add('kv', '', arena.bytes)
  const description = { id: config.id, kind: config.kind, name: info.name }
  const { hostCacheBytes, swapBytes } = hostMemoryOf(config)
  if (hostCacheBytes > 0) {
    const entry = ledger.add('host_cache', '', hostCacheBytes)
    void settleHostCache(native, entry, ledger, options.log.child({ device: config.id }))
  }
  const swap = openSwap(native, swapBytes, largest, options)
  if (swap) ledger.add('swap', '', swapBytes)
  const device = new EngineDevice(description, ledger, arena, options, swap)
  const fixedKvBytes = native.elasticKv ? undefined : arena.bytes
  const lost = (error: unknown): void => options.events.deviceFailed(error)
  return { native, device, budget, contextBytes, kvEntry, fixedKvBytes, lost }
}

/** Loads do without the host cache where the system refuses its memory; the ledger then says so, and the log. */
async function settleHostCache(
  native: NativeDevice,
  entry: LedgerEntry,
  ledger: MemoryLedger,
  log: Logger,
): Promise<void> {
  const { bytes: asked } = entry
  try {
    const bytes = await native.hostCacheBytes()
    ledger.settle(entry, bytes)
    if (bytes === 0) log.error({ asked }, 'no host cache: the system refused page-locked memory; loads read files')
  } catch {
    // The device was closed first.
  }
}

function hostMemoryOf(config: DeviceConfig): { hostCacheBytes: number; swapBytes: number } {
  const hostCacheBytes = config.kind === 'cuda' ? gigabytesToBytes(config.host_cache_gb) : 0
  return { hostCacheBytes, swapBytes: gigabytesToBytes(config.swap_gb) }
}

function openSwap(
  native: NativeDevice,
  bytes: number,
  largestBlockBytes: number,
  { events }: DeviceOptions,
): SwapSpace | undefined {
  if (bytes === 0) return undefined
  // What was not copied is not known: no sequence of the device can go on.
  const failed = (error: unknown): void => events.deviceFailed(error)
  return new SwapSpace(bytes, chooseSlabBytes(bytes, largestBlockBytes), (copy) => native.copyKv(copy), failed)
}

/** On a CPU the arena spans more than it may use now, so that it can grow with the budget. */
function openNative(
  config: DeviceConfig,
  info: NativeDeviceInfo,
  kvBytes: number,
  slabBytes: number,
  addon: Pick<NativeAddon, 'openDevice'>,
): { native: NativeDevice; reservedBytes: number } {
  const { kind } = config
  const threads = kind === 'cpu' ? config.threads : 1
  const open = (kvArenaBytes: number) =>
    addon.openDevice({ kind, index: info.index, threads, kvArenaBytes, ...hostMemoryOf(config) })
  const span = Math.floor((info.memoryBytes * RESERVED_SHARE) / slabBytes) * slabBytes
  if (kind === 'cpu' && span > kvBytes) {
    try {
      return { native: open(span), reservedBytes: span }
    } catch {
      // The system counts what is only reserved: then the arena is as large as it has to be.
    }
  }
  return { native: open(kvBytes), reservedBytes: kvBytes }
}
