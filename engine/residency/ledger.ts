/** What an entry's bytes are for. */
export type LedgerKind = 'weights' | 'kv' | 'workspace' | 'overhead'

/** Bytes of a device's budget that are taken. */
export interface LedgerEntry {
  kind: LedgerKind
  /** Variant name; empty for the device itself. */
  owner: string
  bytes: number
}

/** Where a device's memory goes: every byte of the budget is in an entry or free. */
export class MemoryLedger {
  private readonly list: LedgerEntry[] = []

  constructor(public budgetBytes: number) {}

  get entries(): readonly LedgerEntry[] {
    return this.list
  }

  get freeBytes(): number {
    return this.budgetBytes - this.list.reduce((sum, entry) => sum + entry.bytes, 0)
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
