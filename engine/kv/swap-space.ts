import type { KvCopy } from '../native.js'
import { KvArena } from './arena.js'
import { type Block, BlockPool } from './block-pool.js'

/** Copies blocks between a device's arena and its swap memory, in the order of the steps around the call. */
export type CopyBlocks = (copy: KvCopy) => Promise<{ deviceMicros: number }>

/** Since the engine's start. */
export interface SwapCounters {
  /** Sequences whose blocks were copied out and in, and bytes both ways. */
  out: number
  in: number
  bytes: number
  /** Preempted sequences that are computed again: it costs less, or there was no room. */
  recomputed: number
  full: number
}

/** Taken for granted until copies have been measured. */
const ASSUMED_BYTES_PER_SECOND = 4e9
/** A copy that is older counts this much less with every new one. */
const MEMORY = 0.8

/**
 * Host memory for the blocks of preempted sequences, in slabs as the device's own arena. Host blocks are given back as soon
 * as the copy out of them is queued: whatever is copied there later comes after it.
 */
export class SwapSpace {
  readonly arena: KvArena
  readonly counters: SwapCounters = { out: 0, in: 0, bytes: 0, recomputed: 0, full: 0 }
  private readonly pools = new Map<number, BlockPool>()
  private measured = { bytes: 0, seconds: 0 }

  /** `failed` is told of copies that fail: nothing that was copied can be trusted then. */
  constructor(
    bytes: number,
    slabBytes: number,
    private readonly copyBlocks: CopyBlocks,
    private readonly failed: (error: unknown) => void,
  ) {
    this.arena = new KvArena(bytes, slabBytes)
  }

  get copyBytesPerSecond(): number {
    const { bytes, seconds } = this.measured
    return seconds > 0 ? bytes / seconds : ASSUMED_BYTES_PER_SECOND
  }

  /** Bytes of the blocks of all sequences that are kept here. */
  get usedBytes(): number {
    let bytes = 0
    for (const [blockBytes, pool] of this.pools) bytes += pool.stats().used * blockBytes
    return bytes
  }

  /** Copies blocks to host memory; undefined, with nothing done, when there is no room for all. */
  save(blocks: readonly Block[], blockBytes: number): Block[] | undefined {
    const pool = this.poolOf(blockBytes)
    const host: Block[] = []
    while (host.length < blocks.length) {
      const block = pool?.allocate()
      if (!block) {
        this.release(host, blockBytes)
        return undefined
      }
      host.push(block)
    }
    this.copy(true, blocks, host, blockBytes)
    return host
  }

  /** Copies kept blocks to blocks of the device; they are still to be released. */
  restore(host: readonly Block[], blocks: readonly Block[], blockBytes: number): void {
    this.copy(false, blocks, host, blockBytes)
  }

  release(host: readonly Block[], blockBytes: number): void {
    for (const block of host) this.pools.get(blockBytes)?.release(block)
  }

  /** Throws when a pool's counts disagree with its blocks. */
  checkInvariant(): void {
    for (const pool of this.pools.values()) pool.checkInvariant()
  }

  private copy(toHost: boolean, device: readonly Block[], host: readonly Block[], blockBytes: number): void {
    const bytes = device.length * blockBytes
    this.counters.bytes += bytes
    const deviceBlocks = Uint32Array.from(device, ({ entry }) => entry)
    const hostBlocks = Uint32Array.from(host, ({ entry }) => entry)
    void this.measure(bytes, this.copyBlocks({ toHost, deviceBlocks, hostBlocks, blockBytes }))
  }

  private async measure(bytes: number, copied: ReturnType<CopyBlocks>): Promise<void> {
    try {
      const { deviceMicros } = await copied
      this.measured.bytes = this.measured.bytes * MEMORY + bytes
      this.measured.seconds = this.measured.seconds * MEMORY + deviceMicros / 1e6
    } catch (error) {
      this.failed(error)
    }
  }

  /** Undefined for blocks larger than a slab. */
  private poolOf(blockBytes: number): BlockPool | undefined {
    if (blockBytes > this.arena.slabBytes) return undefined
    const pool = this.pools.get(blockBytes) ?? new BlockPool(this.arena, blockBytes)
    this.pools.set(blockBytes, pool)
    return pool
  }
}
