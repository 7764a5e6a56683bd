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
 * its own size; a slab moves between pools only while none of its blocks is in use.
 */
export class KvArena {
  readonly slabBytes: number
  readonly slabCount: number
  private readonly freeOffsets: number[] = []
  private readonly owners = new Set<SlabOwner>()
  /** Owners with work and no block at all, in the order of their asking. */
  private readonly starving = new Set<SlabOwner>()

  /** `slabBytes` is a multiple of KV_UNIT_BYTES; a rest of `bytes` smaller than a slab stays unused. */
  constructor(bytes: number, slabBytes: number) {
    if (slabBytes <= 0 || slabBytes % KV_UNIT_BYTES !== 0) throw new RangeError(`slab of ${slabBytes} bytes`)
    this.slabBytes = slabBytes
    this.slabCount = Math.floor(bytes / slabBytes)
    for (let i = this.slabCount - 1; i >= 0; i--) this.freeOffsets.push(i * slabBytes)
  }

  get freeSlabs(): number {
    return this.freeOffsets.length
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
    if (this.freeOffsets.length === 0) this.reclaim(owner, false)
    return this.freeOffsets.pop()
  }

  /** As take, but cached blocks of other pools are dropped for it. */
  takeByEviction(owner: SlabOwner): number | undefined {
    if (this.freeOffsets.length === 0) this.reclaim(owner, true)
    return this.freeOffsets.pop()
  }

  give(offset: number): void {
    this.freeOffsets.push(offset)
  }

  /** Slabs that `owner` could get without anybody's running sequence losing a block. */
  obtainable(owner: SlabOwner): number {
    let slabs = this.freeOffsets.length
    for (const other of this.owners) if (other !== owner) slabs += other.idleSlabs()
    return slabs
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

  private reclaim(owner: SlabOwner, evict: boolean): void {
    for (const other of this.owners) if (other !== owner && other.releaseSlab(evict)) return
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
