import { readFileSync } from 'node:fs'
import type { EngineDevice } from '../device.js'
import type { Engine } from '../engine.js'

const INTERVAL_MS = 5000

/** What a process holds: anonymous memory that is resident, and JavaScript's part of it. */
export interface ProcessMemory {
  anonymousBytes: number
  scriptBytes: number
}

/**
 * Compares the ledger of CPU devices with what the process really holds. Weights, workspaces, touched KV memory
 * and swap memory are the native side's; whatever else grew since the start must stay within the ledger's overhead entry. More than that is
 * an alarm: something holds memory that no entry knows.
 */
export class MemoryWatch {
  private readonly baseBytes: number
  private readonly timer: NodeJS.Timeout

  /** To be made after the devices were opened and before anything is loaded; those that an edit opens later count as well. */
  constructor(
    private readonly engine: Engine,
    private readonly measure: () => ProcessMemory | undefined = processMemory,
  ) {
    this.baseBytes = nativeBytes(measure()) ?? 0
    this.timer = setInterval(() => this.check(), INTERVAL_MS)
    this.timer.unref()
  }

  /** Measures now and tells the devices; logs where an alarm begins or ends. */
  check(): void {
    const all = nativeBytes(this.measure())
    // Scripts' memory as well, of other threads.
    const now = all === undefined ? undefined : all - (this.engine.grammars?.bytes ?? 0)
    const devices = this.engine.devices.filter(({ description }) => description.kind === 'cpu')
    if (now === undefined || devices.length === 0) return
    const measuredBytes = Math.max(0, now - this.baseBytes)
    // One process: its memory cannot be told apart by device.
    const driftBytes = measuredBytes - sum(devices, heldBytes)
    const alarm = driftBytes > sum(devices, overheadBytes)
    const before = devices[0]?.drift?.alarm ?? false
    for (const device of devices) device.drift = { measuredBytes, driftBytes, alarm }
    if (alarm === before) return
    if (alarm)
      this.engine.options.log.error({ measuredBytes, driftBytes }, 'the process holds more memory than the ledger')
    else this.engine.options.log.info({ measuredBytes, driftBytes }, 'memory and ledger agree again')
    this.engine.changed()
  }

  close(): void {
    clearInterval(this.timer)
  }
}

/** What the native side should hold. Memory that was reserved and not written to yet is less than this. */
function heldBytes({ ledger, arena, swap }: EngineDevice): number {
  const weights = sum(ledger.entries, ({ kind, bytes }) => (kind === 'weights' || kind === 'workspace' ? bytes : 0))
  return weights + arena.touchedBytes + (swap?.arena.touchedBytes ?? 0)
}

function overheadBytes({ ledger }: EngineDevice): number {
  return sum(ledger.entries, ({ kind, bytes }) => (kind === 'overhead' ? bytes : 0))
}

function sum<T>(items: readonly T[], bytesOf: (item: T) => number): number {
  return items.reduce((total, item) => total + bytesOf(item), 0)
}

function nativeBytes(memory: ProcessMemory | undefined): number | undefined {
  return memory && memory.anonymousBytes - memory.scriptBytes
}

/** From /proc; undefined where there is none. */
function processMemory(): ProcessMemory | undefined {
  try {
    const [, kilobytes] = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
    if (kilobytes === undefined) return undefined
    const { heapTotal, external } = process.memoryUsage()
    return { anonymousBytes: Number(kilobytes) * 1024, scriptBytes: heapTotal + external }
  } catch {
    return undefined
  }
}
