import { KV_UNIT_BYTES } from '../native.js'

/** A pool that holds slabs of the arena and can be asked to give one back. */
export interface SlabOwner {
  /**
   * Gives one slab without blocks in use back to the arena; false when it has none.
   * With `evict` it may drop cached blocks for that, otherwise only an empty slab goes.
   */
  releaseSlab(evict: boolean): boolean
  /** Slabs without blocks in use. */
  idleSlabs(): number
}

/**
 * The KV memory of one device as equal slabs, shared by every variant on it. A pool cuts a slab into blocks of
 * its own size; a slab moves between pools only while none of its blocks is in use. Of the reserved slabs only as many
 * are in use at once as the limit allows, so that weights can take the rest of the budget.
 */
export class KvArena {
  readonly slabBytes: number
  /** Slabs of the reserved memory. */
  readonly reservedSlabs: number
  private limit: number
  /** Free slabs whose memory the system may hold for us, and those that were never used or were discarded. */
  private readonly touched: number[] = []
  private readonly untouched: number[] = []
  private readonly owners = new Set<SlabOwner>()
  /** Owners with work and no block at all, in the order of their asking. */
  private readonly starving = new Set<SlabOwner>()

  /**
   * `slabBytes` is a multiple of KV_UNIT_BYTES; a rest of `bytes` smaller than a slab stays unused. `discard` gives the
   * memory of a free slab back to the system.
   */
  constructor(
    bytes: number,
    slabBytes: number,
    private readonly discard: (offset: number) => void = () => {},
  ) {
    if (slabBytes <= 0 || slabBytes % KV_UNIT_BYTES !== 0) throw new RangeError(`slab of ${slabBytes} bytes`)
    this.slabBytes = slabBytes
    this.reservedSlabs = Math.floor(bytes / slabBytes)
    this.limit = this.reservedSlabs
    for (let i = this.reservedSlabs - 1; i >= 0; i--) this.untouched.push(i * slabBytes)
  }

  /** Slabs that pools may hold. */
  get slabCount(): number {
    return this.limit
  }

  /** Slabs that pools hold; above the limit for as long as sequences need them. */
  get heldSlabs(): number {
    return this.reservedSlabs - this.touched.length - this.untouched.length
  }

  get freeSlabs(): number {
    return Math.max(0, this.limit - this.heldSlabs)
  }

  /** Bytes that count against the budget. */
  get bytes(): number {
    return Math.max(this.limit, this.heldSlabs) * this.slabBytes
  }

  /** Bytes whose memory the system may hold for us. */
  get touchedBytes(): number {
    return (this.heldSlabs + this.touched.length) * this.slabBytes
  }

  /** Sets how many slabs pools may hold, up to those reserved, and takes back what is above it and not in use. */
  setLimit(slabs: number): void {
    this.limit = Math.max(0, Math.min(slabs, this.reservedSlabs))
    this.trim()
  }

  attach(owner: SlabOwner): void {
    this.owners.add(owner)
  }

  detach(owner: SlabOwner): void {
    this.owners.delete(owner)
    this.starving.delete(owner)
  }

  /** Byte offset of a slab: an unowned one, else one that another pool holds empty. */
  take(owner: SlabOwner): number | undefined {
    if (this.freeSlabs === 0) this.reclaim(owner, false)
    return this.pop()
  }

  /** As take, but cached blocks of other pools are dropped for it. */
  takeByEviction(owner: SlabOwner): number | undefined {
    if (this.freeSlabs === 0) this.reclaim(owner, true)
    return this.pop()
  }

  give(offset: number): void {
    this.touched.push(offset)
    if (this.heldSlabs + this.touched.length > this.limit) this.discardOne()
  }

  /** Slabs that `owner` could get without anybody's running sequence losing a block. */
  obtainable(owner: SlabOwner): number {
    let slabs = this.limit - this.heldSlabs
    for (const other of this.owners) if (other !== owner) slabs += other.idleSlabs()
    return Math.max(0, slabs)
  }

  /** States whether `owner` has work but could not get the blocks for any of it. */
  setStarving(owner: SlabOwner, starving: boolean): void {
    if (starving) this.starving.add(owner)
    else this.starving.delete(owner)
  }

  /** False while another owner starves that asked earlier: new work of this one has to wait until it is served. */
  mayAdmit(owner: SlabOwner): boolean {
    for (const first of this.starving) return first === owner
    return true
  }

  /** Takes back what pools hold above the limit and do not use. */
  private trim(): void {
    for (const owner of this.owners) while (this.heldSlabs > this.limit && owner.releaseSlab(true));
    while (this.touched.length > 0 && this.heldSlabs + this.touched.length > this.limit) this.discardOne()
  }

  /** Slabs whose memory is there already go first. */
  private pop(): number | undefined {
    return this.freeSlabs === 0 ? undefined : (this.touched.pop() ?? this.untouched.pop())
  }

  private discardOne(): void {
    const offset = this.touched.pop()
    if (offset === undefined) return
    this.discard(offset)
    this.untouched.push(offset)
  }

  /** Above the limit more than one must go before one can be had. */
  private reclaim(owner: SlabOwner, evict: boolean): void {
    for (const other of this.owners) {
      if (other !== owner) while (this.freeSlabs === 0 && other.releaseSlab(evict));
    }
  }
}

const MAX_SLAB_BYTES = 16 * 2 ** 20
const MIN_SLABS = 64

/**
 * Slab size for an arena: at most 16 MiB and at most 1/64 of it, but never smaller than the largest block,
 * so that little is lost at a slab's end and several models can share a small arena.
 */
export function chooseSlabBytes(arenaBytes: number, largestBlockBytes: number): number {
  const wanted = Math.max(largestBlockBytes, Math.min(MAX_SLAB_BYTES, Math.floor(arenaBytes / MIN_SLABS)))
  const blocks = Math.max(1, Math.floor(wanted / largestBlockBytes))
  return blocks * largestBlockBytes
}
