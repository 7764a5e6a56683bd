import type { DeviceStatus, EngineStatus, VariantStatus } from '../../proto/gen/edgeshift/v1/engine.js'
import type { EngineDevice, ResidentVariant } from '../device.js'
import type { Engine, Variant } from '../engine.js'

/** The engine's state as clients of the internal service see it. */
export function engineStatus(engine: Engine): EngineStatus {
  return {
    engineVersion: engine.options.version,
    variants: [...engine.variants.values()].map(variantStatus),
    running: engine.running,
    waiting: engine.waiting,
    maxWaiting: engine.options.maxWaiting,
    devices: engine.devices.map(deviceStatus),
  }
}

function variantStatus(variant: Variant): VariantStatus {
  const { name, model, precision, device, maxModelLen, vocabSize, state, error, weightBytes, resident } = variant
  const { neededBytes, pinned, loads } = variant
  return {
    name,
    model,
    precision,
    device,
    maxModelLen,
    vocabSize,
    state,
    error,
    weightBytes,
    running: resident?.scheduler.running.length ?? 0,
    waiting: resident?.scheduler.waiting.size ?? 0,
    blockBytes: resident?.blockBytes ?? 0,
    neededBytes,
    pinned,
    loads,
    // Variants are placed once, at the start.
    loadable: false,
    queueable: false,
  }
}

function deviceStatus(device: EngineDevice): DeviceStatus {
  const sum = (pick: (resident: ResidentVariant) => number): number =>
    device.residents.reduce((total, resident) => total + pick(resident), 0)
  const { id, kind, name } = device.description
  return {
    id,
    kind,
    name,
    budgetBytes: device.ledger.budgetBytes,
    ledger: device.ledger.entries.map((entry) => ({ ...entry })),
    blocksTotal: sum(({ scheduler }) => scheduler.pool.stats().total),
    blocksUsed: sum(({ scheduler }) => scheduler.pool.stats().used),
    blocksCached: sum(({ scheduler }) => scheduler.pool.stats().cached),
    blocksFree: sum(({ scheduler }) => scheduler.pool.stats().free),
    prefixQueries: sum(({ scheduler }) => scheduler.counters.prefixQueries),
    prefixHits: sum(({ scheduler }) => scheduler.counters.prefixHits),
    preemptions: sum(({ scheduler }) => scheduler.counters.preemptions),
    steps: sum(({ scheduler }) => scheduler.counters.steps),
    stepTokens: sum(({ scheduler }) => scheduler.counters.stepTokens),
    stepSequences: sum(({ scheduler }) => scheduler.counters.stepSequences),
    stepDeviceUs: sum(({ runner }) => runner.deviceMicros),
    kvBytes: device.arena.slabCount * device.arena.slabBytes,
    kvUsedBytes: sum(({ scheduler, blockBytes }) => scheduler.pool.stats().used * blockBytes),
    kvCachedBytes: sum(({ scheduler, blockBytes }) => scheduler.pool.stats().cached * blockBytes),
  }
}
