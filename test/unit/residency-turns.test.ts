/** Who makes room for whom: turns, and that nobody waits without end while others always have work. */
import { describe, expect, it } from 'vitest'
import { FinishReason, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { KV_UNIT_BYTES } from '../../engine/native.js'
import { type FakeResidency, UNIT } from '../support/fake-native.js'
import {
  answered,
  ask,
  fakeResidencies,
  held,
  heldKv,
  native,
  pause,
  turnOfEventLoop,
  usedKvBytes,
} from '../support/residency-requests.js'

const start = fakeResidencies()
/** Bytes of two slabs of the KV arena. */
const SLABS = 2 * 8 * KV_UNIT_BYTES

function isDraining({ engine, residency }: FakeResidency, name: string): boolean {
  const variant = engine.variants.get(name)
  return variant !== undefined && residency.isDraining(variant)
}

const stateOf = ({ engine }: FakeResidency, name: string) => engine.variants.get(name)?.state

describe('variants that do not fit together', () => {
  it('take turns: everybody is served while both are asked for without end, and no text changes', async () => {
    const fake = start({ variants: { 'a:int4': { weights: 90 }, 'b:int4': { weights: 90 } }, turnMs: 5 })
    const served = { 'a:int4': 0, 'b:int4': 0 }
    // Each goes on until the other has had its share: with one of them starved this never ends.
    const client = async (variant: 'a:int4' | 'b:int4', other: 'a:int4' | 'b:int4'): Promise<void> => {
      while (served[other] < 40 || served[variant] < 40) {
        expect(await answered(ask(fake, variant, { maxTokens: 12 }))).toBe(FinishReason.LENGTH)
        served[variant]++
      }
    }
    await Promise.all(
      Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? client('a:int4', 'b:int4') : client('b:int4', 'a:int4'))),
    )
    expect(usedKvBytes(fake)).toBe(0)
  })

  it('a long answer gives way after its grace, waits for the next load, and is exact', async () => {
    let now = 0
    const clock = (): number => now
    const fake = start({ variants: { 'a:int4': { weights: 90 }, 'b:int4': { weights: 90 } }, turnMs: 10, clock })
    const long = ask(fake, 'a:int4', { maxTokens: 28 })
    while (long.collector.tokens.length < 4) await turnOfEventLoop()
    // A reader that is slow: it would hold its variant for a minute.
    if (!long.sequence) throw new Error('refused')
    fake.engine.setPaused(long.sequence, true)
    const other = ask(fake, 'b:int4')
    await turnOfEventLoop()
    expect(stateOf(fake, 'b:int4')).toBe(VariantState.UNLOADED)
    now = 11
    fake.residency.review()
    await turnOfEventLoop()
    now = 100
    fake.residency.review()
    expect(await answered(other)).toBe(FinishReason.LENGTH)
    expect(fake.engine.variants.get('a:int4')?.resident).toBeUndefined()
    fake.engine.setPaused(long.sequence, false)
    now = 200
    expect(await answered(long)).toBe(FinishReason.LENGTH)
    expect(long.collector.tokens).toHaveLength(28)
    expect(native(fake).log).toEqual(['+a:int4', '-a:int4', '+b:int4', '-b:int4', '+a:int4'])
  })

  it('all come to rest for one that needs the room of several, and who is first stays at rest', async () => {
    let now = 0
    const variants = { 'a:int4': { weights: 45 }, 'b:int4': { weights: 45 }, 'c:int4': { weights: 90 } }
    const fake = start({ variants, turnMs: 10, clock: () => now })
    const [first, second] = [await held(fake, 'a:int4'), await held(fake, 'b:int4')]
    const wanted = ask(fake, 'c:int4')
    const pass = async (to: number): Promise<void> => {
      now = to
      fake.residency.review()
      await turnOfEventLoop()
    }
    await pass(11)
    pause(fake, [first], false)
    await answered(first)
    const again = ask(fake, 'a:int4')
    for (let i = 0; i < 20; i++) await turnOfEventLoop()
    expect(['a:int4', 'b:int4'].map((name) => isDraining(fake, name))).toEqual([true, true])
    expect([again, wanted].map(({ collector }) => collector.tokens)).toEqual([[], []])
    await pass(100)
    await answered(wanted)
    expect(native(fake).log.slice(0, 5)).toEqual(['+a:int4', '+b:int4', '-b:int4', '-a:int4', '+c:int4'])
    pause(fake, [second], false)
    await pass(200)
    await Promise.all([second, again].map(answered))
  })

  it('are loaded in the order in which they were asked for; a later one that fits does not take the room', async () => {
    const variants = { 'a:int4': { weights: 70 }, 'big:int4': { weights: 90 }, 'small:int4': { weights: 10 } }
    const fake = start({ variants, turnMs: 1 })
    const running = ask(fake, 'a:int4', { maxTokens: 28 })
    while (running.collector.tokens.length === 0) await turnOfEventLoop()
    await Promise.all([ask(fake, 'big:int4'), ask(fake, 'small:int4')].map(answered))
    expect(native(fake).log.slice(0, 3)).toEqual(['+a:int4', '-a:int4', '+big:int4'])
  })
})

describe('variants of several devices', () => {
  it('keep turns of their own: what was loaded late on one does not put off who waits for the other', async () => {
    let now = 0
    const on = (id: string) => ({ weights: 90, devices: [id] })
    const variants = { 'a:int4': on('gpu0'), 'b:int4': on('gpu0'), 'x:int4': on('gpu1'), 'y:int4': on('gpu1') }
    const fake = start({ variants, devices: { gpu0: 100, gpu1: 100 }, turnMs: 1000, clock: () => now })
    const early = await held(fake, 'a:int4')
    now = 900
    const late = await held(fake, 'x:int4')
    const waiting = [ask(fake, 'b:int4'), ask(fake, 'y:int4')]
    now = 1001
    fake.residency.review()
    await turnOfEventLoop()
    expect(['a:int4', 'x:int4'].map((name) => isDraining(fake, name))).toEqual([true, false])
    pause(fake, [early, late], false)
    await Promise.all([...waiting, early, late].map(answered))
  })
})

describe('a load that lacks only KV memory', () => {
  // Beside both there is room for two slabs.
  const variants = { 'a:int4': { weights: 40 }, 'b:int4': { weights: 59 - SLABS / UNIT } }

  it.each([false, true])('waits until who uses it has come to rest; nobody leaves (pinned: %s)', async (pinned) => {
    let now = 0
    const fake = start({ variants, turnMs: 10, clock: () => now })
    const long = await heldKv(fake, 'a:int4', SLABS)
    await fake.residency.pin('a:int4', pinned)
    const wanted = ask(fake, 'b:int4')
    for (now of [11, 100]) {
      fake.residency.review()
      await turnOfEventLoop()
    }
    expect(await answered(wanted)).toBe(FinishReason.LENGTH)
    pause(fake, long, false)
    expect(new Set(await Promise.all(long.map(answered)))).toEqual(new Set([FinishReason.LENGTH]))
    expect(native(fake).log).toEqual(['+a:int4', '+b:int4'])
  })

  it('leaves the limit of KV memory as it was when who waited has gone', async () => {
    const fake = start({ variants })
    const { arena } = fake.slot().open.device
    const long = await heldKv(fake, 'a:int4', SLABS)
    const before = arena.slabCount
    const wanted = ask(fake, 'b:int4')
    await turnOfEventLoop()
    expect(arena.slabCount).toBeLessThan(before)
    if (wanted.sequence) fake.engine.cancel(wanted.sequence)
    await turnOfEventLoop()
    expect(arena.slabCount).toBe(before)
    pause(fake, long, false)
    await Promise.all(long.map(answered))
  })
})

describe('a lowered budget', () => {
  it.each([false, true])(
    'is met though sequences use more KV memory, and their variant stays (pinned: %s)',
    async (pinned) => {
      let now = 0
      const fake = start({ variants: { 'a:int4': { weights: 40 } }, turnMs: 10, clock: () => now })
      const long = await heldKv(fake, 'a:int4', SLABS)
      await fake.residency.pin('a:int4', pinned)
      fake.slot().setBudget(40.5 * UNIT + SLABS)
      for (now of [11, 100]) {
        fake.residency.review()
        await turnOfEventLoop()
      }
      expect(fake.slot().overBudget).toBe(false)
      expect(isDraining(fake, 'a:int4')).toBe(false)
      pause(fake, long, false)
      expect(new Set(await Promise.all(long.map(answered)))).toEqual(new Set([FinishReason.LENGTH]))
      expect(native(fake).log).toEqual(['+a:int4'])
    },
  )
})
