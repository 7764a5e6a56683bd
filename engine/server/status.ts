import type {
  DeviceStatus,
  EngineStatus,
  PackedFiles,
  SwapStatus,
  VariantStatus,
} from '../../proto/gen/edgeshift/v1/engine.js'
import type { Derivation } from '../../proto/gen/edgeshift/v1/card.js'
import type { EngineDevice, ResidentVariant } from '../device.js'
import type { Engine, Variant, VariantOutlook } from '../engine.js'
import type { SwapSpace } from '../kv/swap-space.js'
import { ROUNDING_GROUP } from '../registry/index.js'
import { isHostKind } from '../residency/ledger.js'
import type { PackedStore } from '../residency/packed-store.js'

/** The engine's state as clients of the internal service see it. */
export function engineStatus(engine: Engine): EngineStatus {
  return {
    engineVersion: engine.options.version,
    variants: Array.from(engine.variants.values(), (variant) =>
      variantStatus(variant, engine.loader?.outlook(variant)),
    ),
    running: engine.running,
    waiting: engine.waiting,
    maxWaiting: engine.options.maxWaiting,
    devices: engine.devices.map(deviceStatus),
    configError: engine.configError,
    configDigest: engine.configDigest,
    configWaiting: [...engine.configWaiting],
    packed: engine.packed && packedFiles(engine.packed),
  }
}

function packedFiles({ bytes, budgetBytes, count, events }: PackedStore): PackedFiles {
  return { bytes, budgetBytes, files: count, events: new Map(Object.entries(events)) }
}

/** A variant as clients of the internal service see it. */
export function variantStatus(variant: Variant, outlook: VariantOutlook | undefined): VariantStatus {
  const { name, model, precision, device, maxModelLen, vocabSize, state, weightBytes, resident } = variant
  const { neededBytes, pinned, loads, origin, loadMs } = variant
  return {
    name,
    model,
    precision,
    device,
    maxModelLen,
    vocabSize,
    state,
    error: variant.error || (outlook?.reason ?? ''),
    weightBytes,
    running: resident?.scheduler.running.length ?? 0,
    waiting: resident?.scheduler.waiting.size ?? 0,
    blockBytes: resident?.blockBytes ?? 0,
    neededBytes,
    pinned,
    loads,
    origin,
    loadMs: Math.round(loadMs),
    loadable: outlook?.loadable ?? false,
    queueable: outlook?.queueable ?? false,
    room: outlook?.room ?? [],
    ...(variant.roundingError > 0 && { derivation: derivationOf(variant) }),
    ...(variant.quality && { quality: variant.quality }),
  }
}

function derivationOf({ roundingError }: Variant): Derivation {
  return { method: 'round_to_nearest', groupSize: ROUNDING_GROUP, relativeError: roundingError }
}

function deviceStatus(device: EngineDevice): DeviceStatus {
  const sum = (pick: (resident: ResidentVariant) => number): number =>
    device.residents.reduce((total, resident) => total + pick(resident), 0)
  const { id, kind, name } = device.description
  const { counters } = device
  return {
    id,
    kind,
    name,
    budgetBytes: device.ledger.budgetBytes,
    ledger: device.ledger.entries.map((entry) => ({ ...entry, host: isHostKind(entry.kind) })),
    blocksTotal: sum(({ scheduler }) => scheduler.pool.stats().total),
    blocksUsed: sum(({ scheduler }) => scheduler.pool.stats().used),
    blocksCached: sum(({ scheduler }) => scheduler.pool.stats().cached),
    blocksFree: sum(({ scheduler }) => scheduler.pool.stats().free),
    prefixQueries: counters.prefixQueries,
    prefixHits: counters.prefixHits,
    preemptions: counters.preemptions,
    steps: counters.steps,
    stepTokens: counters.stepTokens,
    stepSequences: counters.stepSequences,
    stepDeviceUs: counters.deviceMicros,
    kvBytes: device.arena.bytes,
    kvUsedBytes: sum(({ scheduler, blockBytes }) => scheduler.pool.stats().used * blockBytes),
    measuredBytes: device.drift?.measuredBytes ?? 0,
    driftBytes: device.drift?.driftBytes ?? 0,
    driftAlarm: device.drift?.alarm ?? false,
    interactiveWaitUs: Math.round(device.governor.peakMs * 1000),
    batchTokens: device.residents.reduce((most, { scheduler }) => Math.max(most, scheduler.batchTokens), 0),
    swap: device.swap && swapStatus(device.swap),
    kvCachedBytes: sum(({ scheduler, blockBytes }) => scheduler.pool.stats().cached * blockBytes),
  }
}

function swapStatus({ usedBytes, counters }: SwapSpace): SwapStatus {
  const { bytes: copiedBytes, ...sequences } = counters
  return { usedBytes, copiedBytes, ...sequences }
}
