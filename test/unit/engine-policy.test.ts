/** The engine's pure parts by table: admission, rates, fair share, memory plan, ledger, arena. */
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { FinishReason, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import { chooseSlabBytes, KvArena } from '../../engine/kv/arena.js'
import { chainHash, rootHash } from '../../engine/kv/block-hash.js'
import { BlockPool } from '../../engine/kv/block-pool.js'
import { MemoryLedger } from '../../engine/residency/ledger.js'
import { checkSubmit } from '../../engine/scheduler/admission.js'
import { FairShare } from '../../engine/scheduler/fair-share.js'
import { RateMeter, retryAfterMs } from '../../engine/scheduler/rate.js'
import { Scheduler } from '../../engine/scheduler/scheduler.js'
import { Sequence } from '../../engine/scheduler/sequence.js'
import { Collector, neutralSampling, submitOf } from '../support/fake-engine.js'

const LIMITS = { maxModelLen: 10, vocabSize: 100 }

describe('checkSubmit', () => {
  const cases: [string, Partial<Submit>, string | undefined][] = [
    ['a plain request', {}, undefined],
    ['an empty prompt', { prompt: [] }, 'the prompt is empty'],
    ['a token outside the vocabulary', { prompt: [1, 100] }, 'prompt[1] is 100; the vocabulary has 100 tokens'],
    ['a replay of everything', { prompt: [1], replayedTokens: 1 }, 'replayed_tokens leaves no prompt'],
    ['no sampling', { sampling: undefined }, 'sampling is missing'],
    ['NaN', { sampling: neutralSampling({ temperature: Number.NaN }) }, 'temperature is NaN'],
    ['infinity', { sampling: neutralSampling({ presencePenalty: Infinity }) }, 'presence_penalty is Infinity'],
    ['top_p above one', { sampling: neutralSampling({ topP: 1.5 }) }, 'top_p is 1.5; it must be in 0..1'],
    ['no repetition penalty', { sampling: neutralSampling({ repetitionPenalty: 0 }) }, 'repetition_penalty is 0'],
    ['too many alternatives', { sampling: neutralSampling({ topLogprobs: 21 }) }, 'top_logprobs is 21'],
    ['a stop token outside', { sampling: neutralSampling({ stopTokenIds: [100] }) }, 'stop_token_ids: 100'],
    ['a bias outside', { sampling: neutralSampling({ logitBias: new Map([[100, 1]]) }) }, 'logit_bias: 100'],
    ['an absurd bias', { sampling: neutralSampling({ logitBias: new Map([[1, Number.NaN]]) }) }, 'logit_bias is NaN'],
    ['a prompt with room for one token', { prompt: Array.from({ length: 9 }, () => 1) }, undefined],
    ['a full prompt that is only scored', { prompt: Array.from({ length: 10 }, () => 1), maxTokens: 0 }, undefined],
    [
      'a full prompt',
      { prompt: Array.from({ length: 10 }, () => 1) },
      'the prompt has 10 tokens; prompt and answer together may have 10',
    ],
  ]
  it.each(cases)('%s', (_, overrides, message) => {
    const error = checkSubmit(submitOf(1, [1, 2], overrides), LIMITS)
    expect(error?.message ?? '').toContain(message ?? '')
    expect(error === undefined).toBe(message === undefined)
  })

  it('names the error by what the client can do', () => {
    expect(checkSubmit(submitOf(1, []), LIMITS)?.code).toBe('invalid_request')
    expect(
      checkSubmit(
        submitOf(
          1,
          Array.from({ length: 11 }, () => 1),
        ),
        LIMITS,
      )?.code,
    ).toBe('context_length_exceeded')
  })
})

describe('rates', () => {
  it('measures a steady rate and forgets it', () => {
    const meter = new RateMeter(0)
    for (let now = 100; now <= 30_000; now += 100) meter.record(now)
    expect(meter.perSecond(30_000)).toBeCloseTo(10, 0)
    expect(meter.perSecond(130_000)).toBeLessThan(0.01)
  })

  it.each([
    [100, 0, 1000],
    [100, 50, 500],
    [4, 1000, 100],
    [10_000, 1, 60_000],
  ])('%i waiting at %f per second: retry after %i ms', (waiting, rate, expected) => {
    expect(retryAfterMs(waiting, rate)).toBe(expected)
  })
})

describe('FairShare', () => {
  it('gives no credit for idle time and remembers debts', () => {
    const share = new FairShare()
    share.enter('busy')
    share.charge('busy', 1000)
    share.enter('newcomer')
    expect(share.served('newcomer')).toBe(1000)
    share.charge('newcomer', 500)
    share.leave('newcomer')
    share.charge('busy', 100)
    share.enter('newcomer')
    expect(share.served('newcomer')).toBe(1500)
  })
})

describe('MemoryLedger', () => {
  it('refuses what does not fit and returns to the exact bytes before', () => {
    const ledger = new MemoryLedger(100)
    const first = ledger.reserve('weights', 'm', 60)
    expect(ledger.reserve('weights', 'n', 41)).toBeUndefined()
    expect(ledger.freeBytes).toBe(40)
    if (!first) throw new Error('refused')
    ledger.settle(first, 50)
    expect(ledger.freeBytes).toBe(50)
    ledger.release(first)
    ledger.release(first)
    expect([ledger.freeBytes, ledger.entries.length]).toEqual([100, 0])
  })
})

/** Two variants on an arena of eight blocks of four tokens. */
function twoVariants() {
  const arena = new KvArena(8 * 256, 256)
  const share = new FairShare()
  const limits = { maxNumSeqs: 4, maxBatchTokens: 16, blockSize: 4, maxModelLen: 32, prefixCaching: false }
  const schedulers = [0, 1].map(() => new Scheduler(limits, arena, new BlockPool(arena, 256), share))
  const [busy, starving] = schedulers
  if (!busy || !starving) throw new Error('unreachable')
  const add = (scheduler: Scheduler, id: number, length: number): Sequence => {
    const submit = submitOf(
      id,
      Array.from({ length }, () => id),
      { maxTokens: 1 },
    )
    const sequence = new Sequence(submit, new Collector(), id, 0, limits.maxModelLen)
    scheduler.add(sequence, 0)
    return sequence
  }
  return { busy, starving, add }
}

describe('KV arena', () => {
  it('moves slabs between pools: empty ones first, cached ones when it must, used ones never', () => {
    const arena = new KvArena(4 * 1024, 1024)
    const small = new BlockPool(arena, 256)
    const large = new BlockPool(arena, 1024)
    const held = Array.from({ length: 13 }, () => small.allocate())
    expect(arena.freeSlabs).toBe(0)
    expect(large.available()).toBe(0)
    expect(large.allocate()).toBeUndefined()
    for (const [i, block] of held.entries()) {
      if (!block || i === 0) continue
      small.publish(block, `h${i}`)
      small.release(block)
    }
    expect(large.available()).toBe(3)
    const taken = [large.allocate(), large.allocate(), large.allocate()]
    expect(taken.every((block) => block !== undefined)).toBe(true)
    expect(large.allocate()).toBeUndefined()
    small.checkInvariant()
    large.checkInvariant()
    expect(small.stats()).toEqual({ total: 4, used: 1, cached: 3, free: 0 })
  })

  it('evicts the least recently used cached block first', () => {
    const pool = new BlockPool(new KvArena(1024, 1024), 256)
    const blocks = Array.from({ length: 4 }, () => pool.allocate())
    for (const [i, block] of blocks.entries()) if (block) pool.publish(block, `h${i}`)
    for (const i of [2, 0, 3, 1]) {
      const block = blocks[i]
      if (block) pool.release(block)
    }
    const again = pool.acquireCached('h2')
    if (again) pool.release(again)
    pool.allocate()
    pool.allocate()
    expect(['h0', 'h1', 'h2', 'h3'].filter((hash) => pool.has(hash))).toEqual(['h1', 'h2'])
  })

  it('lets a variant without any block go first: others admit nothing new until it is served', () => {
    const { busy, starving, add } = twoVariants()
    const first = add(busy, 1, 12)
    expect(busy.plan(0)?.entries).toHaveLength(1)
    const large = add(starving, 2, 28)
    expect(starving.plan(0)).toBeUndefined()
    add(busy, 3, 4)
    expect(busy.plan(0)).toBeUndefined()
    busy.end(first, FinishReason.CANCELLED, 0)
    expect(starving.plan(0)?.entries[0]?.sequence).toBe(large)
    expect(busy.plan(0)?.entries).toHaveLength(1)
  })

  it('forgets a starving variant whose work was cancelled', () => {
    const { busy, starving, add } = twoVariants()
    add(busy, 1, 12)
    expect(busy.plan(0)?.entries).toHaveLength(1)
    const large = add(starving, 2, 28)
    expect(starving.plan(0)).toBeUndefined()
    add(busy, 3, 4)
    expect(busy.plan(0)).toBeUndefined()
    starving.end(large, FinishReason.CANCELLED, 0)
    expect(busy.plan(0)?.entries).toHaveLength(1)
  })

  it('holds no more slabs than its limit, discards what it gives back, and reuses memory that is there first', () => {
    const discarded: number[] = []
    const arena = new KvArena(4 * 1024, 1024, (offset) => discarded.push(offset))
    const one = new BlockPool(arena, 1024)
    const two = new BlockPool(arena, 512)
    arena.setLimit(2)
    const held = [one.allocate(), two.allocate()]
    expect([one.allocate(), arena.bytes, arena.touchedBytes]).toEqual([undefined, 2048, 2048])
    arena.setLimit(1)
    expect([arena.bytes, one.usedSlabs() + two.usedSlabs(), discarded]).toEqual([2048, 2, []])
    expect([one.available(), one.allocate()]).toEqual([0, undefined])
    const [first] = held
    if (!first) throw new Error('refused')
    one.release(first)
    arena.setLimit(1)
    expect([arena.bytes, arena.touchedBytes, discarded]).toEqual([1024, 1024, [0]])
    arena.setLimit(9)
    expect([arena.slabCount, one.available()]).toEqual([4, 3])
    one.checkInvariant()
    two.checkInvariant()
  })

  it('chooses slabs that hold whole blocks and waste little', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 40_000 }), fc.integer({ min: 1, max: 2000 }), (units, blocks) => {
        const block = units * 256
        const slab = chooseSlabBytes(block * blocks, block)
        expect(slab % block).toBe(0)
        expect(slab).toBeLessThanOrEqual(Math.max(block, 16 * 2 ** 20))
      }),
    )
  })
})

describe('block hashes', () => {
  it('depend on tenant, tokens and everything before', () => {
    const tokens = Int32Array.of(1, 2, 3)
    const hashes = [rootHash('a'), rootHash('b')].flatMap((root) => [
      chainHash(root, tokens),
      chainHash(root, Int32Array.of(1, 2, 4)),
      chainHash(chainHash(root, tokens), tokens),
    ])
    expect(new Set(hashes).size).toBe(6)
    expect(chainHash(rootHash('a'), Int32Array.of(0, 1, 2, 3).subarray(1))).toBe(hashes[0])
  })
})
