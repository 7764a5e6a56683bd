import type { Logger } from 'pino'
import { VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import type { SchedulerConfig } from '../config/index.js'
import type { Engine, Variant } from '../engine.js'
import type { NativeModel } from '../native.js'
import type { StepExecutor } from '../step/executor.js'
import type { KnownVariant } from './catalog.js'
import type { LedgerEntry, MemoryLedger } from './ledger.js'
import type { OpenDevice } from './open.js'

/**
 * Makes a planned variant resident: reserves its bytes, loads, corrects the ledger to what was taken, starts to
 * schedule. Any failure gives everything back and leaves the variant FAILED with the reason. Never rejects.
 */
export async function loadVariant(
  engine: Engine,
  variant: Variant,
  known: KnownVariant,
  { native, device }: OpenDevice,
  scheduler: SchedulerConfig,
): Promise<void> {
  const { log, clock } = engine.options
  const startedAt = clock()
  const entries: LedgerEntry[] = []
  let model: NativeModel | undefined
  try {
    const weights = reserve(device.ledger, entries, 'weights', known.name, known.demand.weightBytes)
    const workspace = reserve(device.ledger, entries, 'workspace', known.name, known.demand.workspaceBytes)
    model = await native.loadModel(known.request)
    device.ledger.settle(weights, model.weightBytes)
    device.ledger.settle(workspace, model.workspaceBytes)
    if (device.ledger.freeBytes < 0) throw new Error(`took ${-device.ledger.freeBytes} bytes more than the budget has`)
    variant.resident = device.addVariant(withPromptRopes(model, known), model.blockBytes, {
      maxNumSeqs: scheduler.max_num_seqs,
      maxBatchTokens: scheduler.max_num_batched_tokens,
      blockSize: scheduler.block_size,
      maxModelLen: known.maxModelLen,
      prefixCaching: scheduler.enable_prefix_caching,
      ropeLimit: known.ropeLimit,
    })
    variant.weightBytes = model.weightBytes
    variant.neededBytes = model.weightBytes + model.workspaceBytes
    variant.loads++
    variant.state = VariantState.READY
    log.info({ variant: known.name, weightBytes: model.weightBytes, ms: Math.round(clock() - startedAt) }, 'loaded')
  } catch (error) {
    await model?.unload().catch((unloadError: unknown) => log.error({ err: unloadError }, 'unload failed'))
    for (const entry of entries) device.ledger.release(entry)
    failVariant(variant, error, log)
  }
  engine.changed()
}

/** Gives each sequence the rotary tables of its prompt's length. */
function withPromptRopes(model: NativeModel, { promptRopes }: KnownVariant): StepExecutor {
  return {
    setSlot: (slot, state) => model.setSlot(slot, { ...state, ropes: promptRopes(state.promptLength) }),
    step: (batch) => model.step(batch),
  }
}

/** Marks a variant FAILED; the caller tells the engine. */
export function failVariant(variant: Variant, reason: unknown, log: Logger): void {
  variant.state = VariantState.FAILED
  variant.error = reason instanceof Error ? reason.message : String(reason)
  log.error({ variant: variant.name, reason: variant.error }, 'not loaded')
}

function reserve(
  ledger: MemoryLedger,
  entries: LedgerEntry[],
  kind: 'weights' | 'workspace',
  owner: string,
  bytes: number,
): LedgerEntry {
  const entry = ledger.reserve(kind, owner, bytes)
  if (!entry) throw new Error(`${kind} need ${bytes} bytes; ${ledger.freeBytes} of the budget are free`)
  entries.push(entry)
  return entry
}
