/** What an edit of models.yaml means for a running engine. Pure. */
import { isDeepStrictEqual } from 'node:util'
import type { Config, DeviceConfig, Finding, ModelConfig } from '../config/index.js'

/** Model ids by what has to be done with them, and what only a new start changes. */
export interface ConfigDiff {
  /** The same files and sizes: these go on, whatever else of them was edited. */
  kept: string[]
  /** To be read and declared: new ones, and changed ones in the place of the old. */
  fresh: string[]
  /** To be forgotten when they are at rest: dropped ones and the old form of changed ones. */
  retired: string[]
  /** Devices whose memory was edited. */
  budgets: DeviceConfig[]
  /** What differs from what was opened and waits for the next start, also where an earlier edit did it. */
  later: Finding[]
}

/** A GPU's KV arena is of one size from its opening on. */
const ARENA_STAYS = 'the new budget holds for weights; KV memory keeps its size until the next start'

/** What was opened once: `server` as at the start, the devices in use as they were opened. */
export type Opened = Pick<Config, 'server' | 'devices'>

/** `stale`: models to read again although their entry is the same, because their files could not be used. */
export function diffConfig(old: Config, next: Config, stale: ReadonlySet<string>, opened: Opened = old): ConfigDiff {
  const before = new Map(old.models.map((model) => [model.id, model]))
  const sameSizes = isDeepStrictEqual(sizesOf(old), sizesOf(next))
  const isKept = (model: ModelConfig): boolean => {
    const known = before.get(model.id)
    return known !== undefined && sameSizes && !stale.has(model.id) && isDeepStrictEqual(filesOf(known), filesOf(model))
  }
  const kept = next.models.filter(isKept).map(({ id }) => id)
  const keeps = new Set(kept)
  return {
    kept,
    fresh: next.models.flatMap(({ id }) => (keeps.has(id) ? [] : [id])),
    retired: old.models.flatMap(({ id }) => (keeps.has(id) ? [] : [id])),
    budgets: next.devices.filter((device) => budgetEdited(device, old)),
    later: [...laterServer(opened, next), ...laterDevices(opened, next)],
  }
}

/**
 * What models may be on after an edit: the devices of the file, those that are open already as they were opened, and those that
 * it dropped, which stay until the next start.
 */
export function devicesInUse({ devices: opened }: Pick<Opened, 'devices'>, { devices: next }: Config): DeviceConfig[] {
  const listed = new Set(next.map(({ id }) => id))
  const as = (device: DeviceConfig): DeviceConfig => opened.find(({ id }) => id === device.id) ?? device
  return [...next.map(as), ...opened.filter(({ id }) => !listed.has(id))]
}

/** Keys of `server` that the engine reads at its start. */
function laterServer({ server: old }: Opened, { server: next }: Config): Finding[] {
  const message = 'takes effect at the next start; until then the old one is used'
  const edited = (['cache_dir', 'cache_gb'] as const).filter((key) => old[key] !== next[key])
  return edited.map((key) => ({ path: ['server', key], message }))
}

/** What a variant's load depends on beside its model. */
function sizesOf({ scheduler }: Config): object {
  const { block_size, max_num_seqs, max_num_batched_tokens, enable_prefix_caching, kv_cache_dtype } = scheduler
  return { block_size, max_num_seqs, max_num_batched_tokens, enable_prefix_caching, kv_cache_dtype }
}

function filesOf({ variants, max_model_len, kv_cache_dtype }: ModelConfig): object {
  return { variants, max_model_len, kv_cache_dtype }
}

function budgetEdited(device: DeviceConfig, { devices }: Opened): boolean {
  const was = devices.find(({ id }) => id === device.id)
  return was !== undefined && !isDeepStrictEqual(memoryOf(was), memoryOf(device))
}

function laterDevices(opened: Opened, { devices: next }: Config): Finding[] {
  return opened.devices.flatMap((was) => {
    const index = next.findIndex(({ id }) => id === was.id)
    const device = next[index]
    if (device) return laterKeys(was, device, index)
    return { path: ['devices'], message: `${was.id} is given back at the next start` }
  })
}

/** Keys of a device that are read when it is opened. */
function laterKeys(was: DeviceConfig, device: DeviceConfig, index: number): Finding[] {
  const before = new Map<string, unknown>(Object.entries(withoutMemory(was)))
  const after = Object.entries(withoutMemory(device))
  const message = 'takes effect at the next start; until then the device stays as it is'
  if (was.kind !== device.kind) return [{ path: ['devices', index, 'kind'], message }]
  const later = after
    .filter(([key, value]) => !isDeepStrictEqual(before.get(key), value))
    .map(([key]) => ({ path: ['devices', index, key], message }))
  const arena = device.kind === 'cuda' && !isDeepStrictEqual(memoryOf(was), memoryOf(device))
  return arena ? [...later, { path: ['devices', index], message: ARENA_STAYS }] : later
}

function memoryOf(device: DeviceConfig): object {
  const { memory_gb } = device
  return device.kind === 'cuda' ? { memory_gb, memory_utilization: device.memory_utilization } : { memory_gb }
}

function withoutMemory(device: DeviceConfig): object {
  return { ...device, memory_gb: 0, ...(device.kind === 'cuda' && { memory_utilization: 1 }) }
}
