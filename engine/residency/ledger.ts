/** What an entry's bytes are for. */
export type LedgerKind = 'weights' | 'kv' | 'workspace' | 'overhead' | 'context' | HostKind

/** Memory of the host beside the device's budget: taken once, for copies of what was on the device. */
type HostKind = 'host_cache' | 'swap'

const HOST_KINDS: ReadonlySet<LedgerKind> = new Set<HostKind>(['host_cache', 'swap'])

/** Whether bytes of this kind are the host's, beside the device's budget. */
export function isHostKind(kind: LedgerKind): boolean {
  return HOST_KINDS.has(kind)
}

/** Bytes that are taken: of a device's budget, or of the host for it. */
export interface LedgerEntry {
  kind: LedgerKind
  /** Variant name; empty for the device itself. */
  owner: string
  bytes: number
}

/** Where a device's memory goes: every byte of the budget is in an entry or free; the host's entries stand beside it. */
export class MemoryLedger {
  private readonly list: LedgerEntry[] = []

  constructor(public budgetBytes: number) {}

  get entries(): readonly LedgerEntry[] {
    return this.list
  }

  get freeBytes(): number {
    return this.list.reduce((free, { kind, bytes }) => (isHostKind(kind) ? free : free - bytes), this.budgetBytes)
  }

  /** Counts bytes that are taken whether they fit or not. */
  add(kind: LedgerKind, owner: string, bytes: number): LedgerEntry {
    const entry = { kind, owner, bytes }
    this.list.push(entry)
    return entry
  }

  /** Takes bytes; undefined, with nothing changed, when they are not free. */
  reserve(kind: LedgerKind, owner: string, bytes: number): LedgerEntry | undefined {
    if (bytes > this.freeBytes) return undefined
    return this.add(kind, owner, bytes)
  }

  /** Corrects an entry from an estimate to what was really taken. */
  settle(entry: LedgerEntry, bytes: number): void {
    entry.bytes = bytes
  }

  release(entry: LedgerEntry): void {
    const at = this.list.indexOf(entry)
    if (at >= 0) this.list.splice(at, 1)
  }
}
