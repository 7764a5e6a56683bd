import type { Logger } from 'pino'
import { type DeviceConfig, gigabytesToBytes } from '../config/index.js'
import { EngineDevice, type DeviceOptions } from '../device.js'
import { chooseSlabBytes, KvArena } from '../kv/arena.js'
import type { NativeAddon, NativeDevice, NativeDeviceInfo } from '../native.js'
import { MemoryLedger } from './ledger.js'
import type { DeviceBudget } from './plan.js'

/** Threads' stacks, the runtime, the addon. */
const OVERHEAD_BYTES = 64 * 2 ** 20

/** A configured device that the native side has. */
export interface FoundDevice {
  config: DeviceConfig
  info: NativeDeviceInfo
  budget: DeviceBudget
}

/** A device in use. */
export interface OpenDevice {
  native: NativeDevice
  device: EngineDevice
}

/** The configured devices that exist here, with the memory they may use; missing ones are logged. */
export function findDevices(configs: readonly DeviceConfig[], addon: NativeAddon, log: Logger): FoundDevice[] {
  const infos = addon.devices()
  return configs.flatMap((config) => {
    const index = config.kind === 'cuda' ? config.index : 0
    const info = infos.find((candidate) => candidate.kind === config.kind && candidate.index === index)
    if (info) return { config, info, budget: budgetOf(config, info) }
    log.error({ device: config.id, kind: config.kind }, 'no such device on this machine or in this build')
    return []
  })
}

function budgetOf(config: DeviceConfig, info: NativeDeviceInfo): DeviceBudget {
  const share = config.kind === 'cuda' ? config.memory_utilization : 1
  const cap = config.memory_gb === undefined ? Infinity : gigabytesToBytes(config.memory_gb)
  const budgetBytes = Math.min(cap, Math.floor(info.memoryBytes * share))
  return { id: config.id, budgetBytes, overheadBytes: OVERHEAD_BYTES }
}

/**
 * Opens a device with an arena for KV blocks of up to `largestBlockBytes`. Throws the addon's out_of_memory when the
 * arena cannot be had.
 */
export function openDevice(
  { config, info, budget }: FoundDevice,
  kvBytes: number,
  largestBlockBytes: number,
  addon: NativeAddon,
  options: DeviceOptions,
): OpenDevice {
  const arena = new KvArena(kvBytes, chooseSlabBytes(kvBytes, largestBlockBytes))
  const kvArenaBytes = arena.slabCount * arena.slabBytes
  const threads = config.kind === 'cpu' ? config.threads : 1
  const native = addon.openDevice({ kind: config.kind, index: info.index, threads, kvArenaBytes })
  const ledger = new MemoryLedger(budget.budgetBytes)
  ledger.reserve('overhead', '', budget.overheadBytes)
  ledger.reserve('kv', '', kvArenaBytes)
  const description = { id: config.id, kind: config.kind, name: info.name }
  return { native, device: new EngineDevice(description, ledger, arena, options) }
}
