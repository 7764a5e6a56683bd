import type { EngineDevice, ResidentVariant } from '../device.js'
import type { NativeModel } from '../native.js'
import type { StepExecutor } from '../step/executor.js'
import { isDeviceLost } from '../step/step-loop.js'
import type { KnownVariant } from './catalog.js'
import type { LedgerEntry, LedgerKind, MemoryLedger } from './ledger.js'
import type { OpenDevice } from './open.js'

/** A variant on a device with all that it takes there. */
export interface LoadedVariant {
  model: NativeModel
  resident: ResidentVariant
  entries: readonly LedgerEntry[]
}

/**
 * A transaction: reserves a variant's bytes, loads it, corrects the ledger to what was taken and starts to schedule it.
 * Rejects with the reason, and then ledger, device and memory are as before. Tells when the device went with it.
 */
export async function loadVariant(known: KnownVariant, open: OpenDevice): Promise<LoadedVariant> {
  const { native, device, packed } = open
  const { ledger } = device
  const name = packed?.name(known.request, native.packedLayout)
  const entries: LedgerEntry[] = []
  let model: NativeModel | undefined
  try {
    const weights = reserve(ledger, entries, 'weights', known.name, known.demand.weightBytes)
    const workspace = reserve(ledger, entries, 'workspace', known.name, known.demand.workspaceBytes)
    model = await native.loadModel(known.request, name && packed?.find(name))
    ledger.settle(weights, model.weightBytes)
    ledger.settle(workspace, model.workspaceBytes)
    if (ledger.freeBytes < 0) throw new Error(`took ${-ledger.freeBytes} bytes more than the budget has`)
    const resident = device.addVariant(withPromptRopes(model, known), model.blockBytes, known.limits)
    if (name) packed?.loaded(known.name, name, model)
    return { model, resident, entries }
  } catch (error) {
    try {
      await model?.unload()
    } finally {
      for (const entry of entries) ledger.release(entry)
      await tellLoss(open, error)
    }
    throw error
  }
}

/** One model's failure leaves a device usable; after an error that sticks to it (CUDA's do) nothing works there any more. */
async function tellLoss({ native, lost }: OpenDevice, error: unknown): Promise<void> {
  if (!isDeviceLost(error)) return
  try {
    await native.usedBytes()
  } catch {
    lost(error)
  }
}

/** Stops scheduling a variant without sequences; what is returned frees its memory and then gives its bytes back. */
export function detachVariant({ model, resident, entries }: LoadedVariant, device: EngineDevice): () => Promise<void> {
  device.removeVariant(resident)
  return async () => {
    try {
      await model.unload()
    } finally {
      for (const entry of entries) device.ledger.release(entry)
    }
  }
}

/** Gives each sequence the rotary tables of its prompt's length. */
function withPromptRopes(model: NativeModel, { promptRopes }: KnownVariant): StepExecutor {
  return {
    setSlot: (slot, state) => model.setSlot(slot, { ...state, ropes: promptRopes(state.promptLength) }),
    step: (batch) => model.step(batch),
    giveMasks: (masks) => model.giveMasks(masks),
  }
}

function reserve(
  ledger: MemoryLedger,
  entries: LedgerEntry[],
  kind: LedgerKind,
  owner: string,
  bytes: number,
): LedgerEntry {
  const entry = ledger.reserve(kind, owner, bytes)
  if (!entry) throw new Error(`${kind} need ${bytes} bytes; ${ledger.freeBytes} of the budget are free`)
  entries.push(entry)
  return entry
}
