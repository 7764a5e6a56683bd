import { describe, expect, it } from 'vitest'
import { SwapSpace } from '../../engine/kv/swap-space.js'
import { KvArena } from '../../engine/kv/arena.js'
import { BlockPool } from '../../engine/kv/block-pool.js'
import { KV_UNIT_BYTES, type KvCopy } from '../../engine/native.js'
import { prefersSwap, type SwapCosts } from '../../engine/scheduler/swap-choice.js'

describe('swap or compute again', () => {
  const costs: SwapCosts = { tokens: 1000, bytes: 20e6, prefillTokensPerSecond: 400, copyBytesPerSecond: 4e9 }

  it.each<[string, Partial<SwapCosts>, boolean]>([
    ['2.5 s of computing, 10 ms of copying', {}, true],
    ['no prefill has been measured', { prefillTokensPerSecond: undefined }, true],
    ['a device that computes faster than memory copies', { prefillTokensPerSecond: 200_000 }, false],
    ['exactly as long', { prefillTokensPerSecond: 1000 / (2 * (100e-6 + 20e6 / 4e9)) }, false],
    ['a slow bus', { copyBytesPerSecond: 10e6 }, false],
    [
      'a few tokens of a small model: the copy itself costs more',
      { tokens: 4, bytes: 1000, prefillTokensPerSecond: 50_000 },
      false,
    ],
    ['nothing computed yet', { tokens: 0, bytes: 0, prefillTokensPerSecond: undefined }, false],
  ])('%s: swap %#', (_, change, expected) => {
    expect(prefersSwap({ ...costs, ...change })).toBe(expected)
  })
})

const BLOCK = KV_UNIT_BYTES

/** Swap memory of so many blocks, beside a device with enough; copies are recorded and end when the test says so. */
function space(blocks: number) {
  const copies: { copy: KvCopy; end: (outcome: { deviceMicros: number } | Error) => void }[] = []
  const failures: unknown[] = []
  const copyBlocks = (copy: KvCopy) =>
    new Promise<{ deviceMicros: number }>((resolve, reject) => {
      copies.push({ copy, end: (outcome) => (outcome instanceof Error ? reject(outcome) : resolve(outcome)) })
    })
  const swap = new SwapSpace(blocks * BLOCK, BLOCK, copyBlocks, (error) => failures.push(error))
  const pool = new BlockPool(new KvArena(64 * BLOCK, BLOCK), BLOCK)
  const take = (count: number) =>
    Array.from({ length: count }, () => pool.allocate()).filter((block) => block !== undefined)
  return { swap, copies, failures, take }
}

describe('swap memory', () => {
  it('copies every block to a place of its own and back', () => {
    const { swap, copies, take } = space(4)
    const blocks = take(3)
    const host = swap.save(blocks, BLOCK)
    expect(swap.usedBytes).toBe(3 * BLOCK)
    const others = take(3)
    swap.restore(host ?? [], others, BLOCK)
    swap.release(host ?? [], BLOCK)
    expect(copies.map(({ copy }) => [copy.toHost, ...copy.deviceBlocks])).toEqual([
      [true, ...blocks.map(({ entry }) => entry)],
      [false, ...others.map(({ entry }) => entry)],
    ])
    expect(copies[0]?.copy.hostBlocks).toEqual(copies[1]?.copy.hostBlocks)
    expect(new Set(copies[0]?.copy.hostBlocks).size).toBe(3)
    expect([swap.usedBytes, swap.counters.bytes]).toEqual([0, 6 * BLOCK])
  })

  it('takes all blocks or none: when it is full nothing is copied, and room comes back', () => {
    const { swap, copies, take } = space(4)
    const first = swap.save(take(3), BLOCK)
    expect(swap.save(take(2), BLOCK)).toBeUndefined()
    expect([swap.usedBytes, copies.length]).toEqual([3 * BLOCK, 1])
    swap.release(first ?? [], BLOCK)
    expect(swap.save(take(4), BLOCK)).toHaveLength(4)
    swap.checkInvariant()
  })

  it('has no room for blocks larger than its slabs', () => {
    const { swap, take } = space(4)
    expect(swap.save(take(1), 2 * BLOCK)).toBeUndefined()
  })

  it('moves its slabs between variants of different blocks', () => {
    const swap = new SwapSpace(
      4 * BLOCK,
      2 * BLOCK,
      () => Promise.resolve({ deviceMicros: 1 }),
      () => {},
    )
    const pool = new BlockPool(new KvArena(64 * BLOCK, 2 * BLOCK), BLOCK)
    const wide = new BlockPool(new KvArena(64 * BLOCK, 2 * BLOCK), 2 * BLOCK)
    const small = swap.save(
      [pool.allocate(), pool.allocate(), pool.allocate()].filter((b) => b !== undefined),
      BLOCK,
    )
    const two = [wide.allocate(), wide.allocate()].filter((b) => b !== undefined)
    expect(swap.save(two, 2 * BLOCK)).toBeUndefined()
    swap.release(small ?? [], BLOCK)
    expect(swap.save(two, 2 * BLOCK)).toHaveLength(2)
    swap.checkInvariant()
  })

  it('learns its speed from copies', async () => {
    const { swap, copies, take } = space(8)
    expect(swap.copyBytesPerSecond).toBe(4e9)
    swap.save(take(8), BLOCK)
    copies[0]?.end({ deviceMicros: 2 })
    await new Promise((resolve) => setImmediate(resolve))
    expect(swap.copyBytesPerSecond).toBeCloseTo((8 * BLOCK) / 2e-6, -3)
  })

  it('says that the device cannot go on when a copy fails', async () => {
    const { swap, copies, failures, take } = space(8)
    swap.save(take(1), BLOCK)
    const lost = new Error('the bus is gone')
    copies[0]?.end(lost)
    await new Promise((resolve) => setImmediate(resolve))
    expect(failures).toEqual([lost])
  })
})
