import type { EngineDevice } from '../device.js'
import type { Engine } from '../engine.js'
import type { NativeDevice } from '../native.js'
import type { MemoryWatch } from './memory-watch.js'

const INTERVAL_MS = 5000

/** Holds ledgers against what is measured: the process's memory, or a GPU's. */
export type LedgerWatch = MemoryWatch | DriverWatch

/**
 * Compares a GPU's ledger with what its driver says is in use, beside what was in use when the device was opened (the KV
 * arena and the context are in that). What weights and workspaces do not explain must stay within the ledger's overhead
 * entry: graphs, code loaded on first use, the rounding of allocations. More is an alarm; so is another program that
 * takes memory on the same GPU.
 */
export class DriverWatch {
  private readonly base: Promise<number | undefined>
  private readonly timer: NodeJS.Timeout

  /** To be made when the device was opened and before anything is loaded on it. */
  constructor(
    private readonly engine: Engine,
    private readonly device: EngineDevice,
    private readonly native: Pick<NativeDevice, 'usedBytes'>,
  ) {
    this.base = native.usedBytes().catch(() => undefined)
    this.timer = setInterval(() => void this.check(), INTERVAL_MS)
    this.timer.unref()
  }

  /** Measures and tells the device; logs where an alarm begins or ends. Says nothing when the ledger moved meanwhile. */
  async check(): Promise<void> {
    const { device } = this
    const held = heldBytes(device)
    const [base, now] = await Promise.all([this.base, this.native.usedBytes().catch(() => undefined)])
    if (base === undefined || now === undefined || held !== heldBytes(device)) return
    const measuredBytes = Math.max(0, now - base)
    const driftBytes = measuredBytes - held
    const overhead = device.ledger.entries.find(({ kind }) => kind === 'overhead')?.bytes ?? 0
    const before = device.drift?.alarm ?? false
    device.drift = { measuredBytes, driftBytes, alarm: driftBytes > overhead }
    if (device.drift.alarm === before) return
    const facts = { device: device.description.id, measuredBytes, driftBytes }
    if (before) this.engine.options.log.info(facts, 'memory and ledger agree again')
    else this.engine.options.log.error(facts, 'more of the GPU is in use than the ledger says')
    this.engine.changed()
  }

  close(): void {
    clearInterval(this.timer)
  }
}

/** What was taken since the device was opened. */
function heldBytes({ ledger }: EngineDevice): number {
  return ledger.entries.reduce(
    (sum, { kind, bytes }) => sum + (kind === 'weights' || kind === 'workspace' ? bytes : 0),
    0,
  )
}
