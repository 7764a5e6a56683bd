import { KV_UNIT_BYTES } from '../native.js'
import type { KvArena, SlabOwner } from './arena.js'
import type { BlockHash } from './block-hash.js'

/** One KV block. In exactly one state: used (refs > 0), cached (refs = 0, has a hash) or free. */
export class Block {
  refs = 0
  hash: BlockHash | undefined
  /** Links of the pool's list of cached blocks. */
  older: Block | undefined
  newer: Block | undefined

  /** `entry`: what the native block table holds, arena offset / KV_UNIT_BYTES. */
  constructor(
    readonly slab: Slab,
    readonly entry: number,
  ) {}
}

/** A slab of the arena cut into blocks of one pool. */
interface Slab {
  offset: number
  blocks: Block[]
  free: Block[]
  used: number
}

/** Counts of blocks by state; free + cached + used = total. */
export interface BlockCounts {
  total: number
  used: number
  cached: number
  free: number
}

/**
 * The blocks of one variant: reference counted, with a prefix cache of full blocks. Unreferenced cached blocks are
 * evicted least recently used first, only when no free block and no unused slab is left.
 */
export class BlockPool implements SlabOwner {
  private readonly slabs: Slab[] = []
  private readonly byHash = new Map<BlockHash, Block>()
  private oldest: Block | undefined
  private newest: Block | undefined
  private readonly counts: BlockCounts = { total: 0, used: 0, cached: 0, free: 0 }
  private readonly blocksPerSlab: number

  constructor(
    private readonly arena: KvArena,
    private readonly blockBytes: number,
  ) {
    if (blockBytes <= 0 || blockBytes % KV_UNIT_BYTES !== 0 || blockBytes > arena.slabBytes) {
      throw new RangeError(`block of ${blockBytes} bytes does not fit slabs of ${arena.slabBytes}`)
    }
    this.blocksPerSlab = Math.floor(arena.slabBytes / blockBytes)
    arena.attach(this)
  }

  /** Blocks that the whole arena would hold for this pool alone. */
  get capacity(): number {
    return this.arena.slabCount * this.blocksPerSlab
  }

  stats(): Readonly<BlockCounts> {
    return this.counts
  }

  /** Blocks that can be had without preempting anyone. */
  available(): number {
    return this.counts.free + this.counts.cached + this.arena.obtainable(this) * this.blocksPerSlab
  }

  /** The cached or used block with this hash, referenced once more; undefined when there is none. */
  acquireCached(hash: BlockHash): Block | undefined {
    const block = this.byHash.get(hash)
    if (!block) return undefined
    if (block.refs === 0) {
      this.unlink(block)
      this.counts.cached--
      this.markUsed(block)
    } else {
      block.refs++
    }
    return block
  }

  has(hash: BlockHash): boolean {
    return this.byHash.has(hash)
  }

  /** A block with one reference and undefined content; undefined when everything is in use. */
  allocate(): Block | undefined {
    const slab = this.slabs.find((s) => s.free.length > 0) ?? this.grow(this.arena.take(this))
    const block = slab?.free.pop() ?? this.evictOldest() ?? this.grow(this.arena.takeByEviction(this))?.free.pop()
    if (!block) return undefined
    this.counts.free--
    this.markUsed(block)
    return block
  }

  /** Makes a full, computed block findable; a second block with the same content stays private. */
  publish(block: Block, hash: BlockHash): void {
    if (block.hash !== undefined || this.byHash.has(hash)) return
    block.hash = hash
    this.byHash.set(hash, block)
  }

  /** Drops one reference; the last one makes the block cached (when published) or free. */
  release(block: Block): void {
    if (block.refs <= 0) throw new Error('block released twice')
    if (--block.refs > 0) return
    this.counts.used--
    block.slab.used--
    if (block.hash === undefined) {
      this.counts.free++
      block.slab.free.push(block)
    } else {
      this.counts.cached++
      this.linkNewest(block)
    }
  }

  /** Forgets every unreferenced cached block and unpublishes the rest: their content is no longer trusted. */
  clearCache(): void {
    while (this.oldest) this.toFree(this.oldest)
    for (const block of this.byHash.values()) block.hash = undefined
    this.byHash.clear()
  }

  idleSlabs(): number {
    let idle = 0
    for (const slab of this.slabs) if (slab.used === 0) idle++
    return idle
  }

  /** Slabs with a block in use. */
  usedSlabs(): number {
    return this.slabs.length - this.idleSlabs()
  }

  releaseSlab(evict: boolean): boolean {
    const index = this.slabs.findIndex((s) => s.used === 0 && (evict || s.free.length === s.blocks.length))
    const slab = this.slabs[index]
    if (!slab) return false
    for (const block of slab.blocks) if (block.hash !== undefined) this.toFree(block)
    this.slabs.splice(index, 1)
    this.counts.total -= slab.blocks.length
    this.counts.free -= slab.blocks.length
    this.arena.give(slab.offset)
    return true
  }

  /** Returns every slab; all blocks must have been released. */
  close(): void {
    if (this.counts.used > 0) throw new Error(`${this.counts.used} blocks still in use`)
    while (this.releaseSlab(true));
    this.arena.detach(this)
  }

  /** Recounts every block and throws where the counters or lists disagree. For tests and idle checks. */
  checkInvariant(): void {
    const seen: BlockCounts = { total: 0, used: 0, cached: 0, free: 0 }
    for (const slab of this.slabs) {
      const used = slab.blocks.filter((b) => b.refs > 0).length
      const cached = slab.blocks.filter((b) => b.refs === 0 && b.hash !== undefined).length
      if (used !== slab.used) throw new Error(`slab at ${slab.offset}: ${used} used, counter says ${slab.used}`)
      seen.total += slab.blocks.length
      seen.used += used
      seen.cached += cached
      seen.free += slab.free.length
    }
    const { total, used, cached, free } = this.counts
    const same = seen.total === total && seen.used === used && seen.cached === cached && seen.free === free
    if (!same || free + cached + used !== total) {
      throw new Error(`block counts ${JSON.stringify(this.counts)}, recounted ${JSON.stringify(seen)}`)
    }
  }

  private markUsed(block: Block): void {
    block.refs = 1
    block.slab.used++
    this.counts.used++
  }

  private grow(offset: number | undefined): Slab | undefined {
    if (offset === undefined) return undefined
    const slab: Slab = { offset, blocks: [], free: [], used: 0 }
    for (let i = 0; i < this.blocksPerSlab; i++) {
      slab.blocks.push(new Block(slab, (offset + i * this.blockBytes) / KV_UNIT_BYTES))
    }
    slab.free = slab.blocks.toReversed()
    this.slabs.push(slab)
    this.counts.total += slab.blocks.length
    this.counts.free += slab.blocks.length
    return slab
  }

  /** Takes the least recently used cached block out of the cache and out of its slab's free list. */
  private evictOldest(): Block | undefined {
    const block = this.oldest
    if (!block) return undefined
    this.toFree(block)
    return block.slab.free.pop()
  }

  /** cached -> free. */
  private toFree(block: Block): void {
    this.unlink(block)
    if (block.hash !== undefined) this.byHash.delete(block.hash)
    block.hash = undefined
    this.counts.cached--
    this.counts.free++
    block.slab.free.push(block)
  }

  private linkNewest(block: Block): void {
    block.older = this.newest
    if (this.newest) this.newest.newer = block
    else this.oldest = block
    this.newest = block
  }

  private unlink(block: Block): void {
    if (block.older) block.older.newer = block.newer
    else this.oldest = block.newer
    if (block.newer) block.newer.older = block.older
    else this.newest = block.older
    block.older = undefined
    block.newer = undefined
  }
}
