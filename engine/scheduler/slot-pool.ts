/**
 * The executor's slots. A slot given back while steps are under way is handed out again only after they are read,
 * so that a new sequence's state never meets a step of the old one.
 */
export class SlotPool {
  private readonly free: number[] = []
  private readonly retiring: { slot: number; after: number }[] = []
  private issued = 0
  private settled = 0

  constructor(count: number) {
    for (let slot = count - 1; slot >= 0; slot--) this.free.push(slot)
  }

  get available(): boolean {
    return this.free.length > 0
  }

  /** Call only when available. */
  take(): number {
    const slot = this.free.pop()
    if (slot === undefined) throw new Error('no free slot')
    return slot
  }

  give(slot: number): void {
    if (this.issued === this.settled) this.free.push(slot)
    else this.retiring.push({ slot, after: this.issued })
  }

  /** A step was planned. */
  issue(): void {
    this.issued++
  }

  /** The oldest step was read. */
  settle(): void {
    this.settled++
    for (let head = this.retiring[0]; head && head.after <= this.settled; head = this.retiring[0]) {
      this.free.push(head.slot)
      this.retiring.shift()
    }
  }
}
