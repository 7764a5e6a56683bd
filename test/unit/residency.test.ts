/** Loading on demand over fake devices: who comes, who goes, who waits, and that every byte comes back. */
import { describe, expect, it } from 'vitest'
import { FinishReason, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { type FakeResidency, UNIT } from '../support/fake-native.js'
import { answered, ask, fakeResidencies, native, turnOfEventLoop } from '../support/residency-requests.js'

const start = fakeResidencies()
const stateOf = ({ engine }: FakeResidency, name: string) => engine.variants.get(name)?.state
const three = { 'a:int4': { weights: 40 }, 'b:int4': { weights: 40 }, 'c:int4': { weights: 40 } }

describe('a request for a variant that is not resident', () => {
  it('loads it, once for all who ask, and they are served in order', async () => {
    const fake = start({ variants: three })
    const open = native(fake).hold()
    const order: number[] = []
    const asked = Array.from({ length: 20 }, (_, i) => {
      const one = ask(fake, 'a:int4')
      void one.collector.done.then(() => order.push(i))
      return one
    })
    await turnOfEventLoop()
    expect([stateOf(fake, 'a:int4'), fake.engine.waiting, native(fake).loading]).toEqual([VariantState.LOADING, 20, 1])
    open()
    expect(new Set(await Promise.all(asked.map(answered)))).toEqual(new Set([FinishReason.LENGTH]))
    expect(order).toEqual(asked.map((_, i) => i))
    expect(native(fake).log).toEqual(['+a:int4'])
    expect(fake.engine.variants.get('a:int4')).toMatchObject({ loads: 1, state: VariantState.READY, device: 'cpu0' })
  })

  it('evicts the one not used for the longest time, and the ledger says so to the byte', async () => {
    const fake = start({ variants: three })
    const empty = fake.ledger()
    for (const name of ['a:int4', 'b:int4', 'a:int4', 'c:int4']) await answered(ask(fake, name))
    await fake.residency.settled()
    expect(native(fake).log).toEqual(['+a:int4', '+b:int4', '-b:int4', '+c:int4'])
    expect(fake.ledger().slice(1)).toEqual([
      `weights a:int4 ${40 * UNIT}`,
      `workspace a:int4 ${UNIT / 2}`,
      `weights c:int4 ${40 * UNIT}`,
      `workspace c:int4 ${UNIT / 2}`,
    ])
    await fake.residency.unload('a:int4')
    await fake.residency.unload('c:int4')
    expect(fake.ledger()).toEqual(empty)
  })

  it('does not hold up others, and they are not evicted while they work', async () => {
    const fake = start({ variants: { ...three, 'd:int4': { weights: 19 } } })
    await answered(ask(fake, 'a:int4'))
    const open = native(fake).hold()
    const waiting = ask(fake, 'b:int4')
    await turnOfEventLoop()
    for (let i = 0; i < 5; i++) expect(await answered(ask(fake, 'a:int4'))).toBe(FinishReason.LENGTH)
    expect(waiting.collector.tokens).toEqual([])
    open()
    await answered(waiting)
  })

  it('waits no longer than its deadline, and can be cancelled', async () => {
    const fake = start({ variants: three })
    const open = native(fake).hold()
    const hasty = ask(fake, 'a:int4', { deadlineMs: 1 })
    const cancelled = ask(fake, 'a:int4')
    const patient = ask(fake, 'a:int4')
    if (cancelled.sequence) fake.engine.cancel(cancelled.sequence)
    expect((await cancelled.collector.done).finishReason).toBe(FinishReason.CANCELLED)
    expect((await hasty.collector.done).finishReason).toBe(FinishReason.DEADLINE)
    expect(fake.engine.waiting).toBe(1)
    open()
    expect(await answered(patient)).toBe(FinishReason.LENGTH)
  })

  it('counts against the bound of the queue', () => {
    const fake = start({ variants: three, maxWaiting: 2 })
    const asked = Array.from({ length: 3 }, () => ask(fake, 'a:int4'))
    expect(asked.map(({ collector }) => collector.end?.error?.code)).toEqual([undefined, undefined, 'queue_full'])
  })

  it('is refused with the figures when it can never fit', () => {
    const fake = start({ variants: { 'a:int4': { weights: 101 } } })
    const { collector } = ask(fake, 'a:int4')
    expect(collector.end?.error).toMatchObject({ code: 'engine_unavailable' })
    expect(collector.end?.error?.message).toMatch(/needs 101 MiB weights .* cpu0 has 100 MiB of 100 MiB free/)
  })
})

describe('a load that fails', () => {
  it('ends those who wait with the reason, gives every byte back, and the next request loads again', async () => {
    const fake = start({ variants: three })
    await answered(ask(fake, 'a:int4'))
    const before = fake.ledger()
    native(fake).failures.push(new Error('torn file'))
    const asked = [ask(fake, 'b:int4'), ask(fake, 'b:int4')]
    for (const { collector } of asked) {
      expect((await collector.done).error?.message).toBe('b:int4 is not loaded: torn file')
    }
    await fake.residency.settled()
    expect(fake.ledger()).toEqual(before)
    expect(stateOf(fake, 'b:int4')).toBe(VariantState.FAILED)
    expect(await answered(ask(fake, 'b:int4'))).toBe(FinishReason.LENGTH)
  })

  it('with an error of the device tells that the device is lost where it answers nothing any more, else not', async () => {
    const fake = start({ variants: three })
    const broken = (): Error => Object.assign(new Error('illegal address'), { code: 'device_failed' })
    native(fake).failures.push(broken())
    expect((await ask(fake, 'a:int4').collector.done).error?.message).toBe('a:int4 is not loaded: illegal address')
    await fake.residency.settled()
    expect(fake.lost).toEqual([])
    native(fake).failures.push(broken())
    native(fake).dead = broken()
    await ask(fake, 'b:int4').collector.done
    await fake.residency.settled()
    expect(fake.lost).toMatchObject([{ code: 'device_failed', message: 'illegal address' }])
  })

  it('twice in a row is not tried again before a pause, which grows', async () => {
    let now = 0
    const fake = start({ variants: three, clock: () => now })
    const outcomes: (string | undefined)[] = []
    const tryIt = async (): Promise<void> => {
      outcomes.push((await ask(fake, 'a:int4').collector.done).error?.message)
      await fake.residency.settled()
    }
    native(fake).failures.push(...[1, 2, 3].map((i) => new Error(`no ${i}`)))
    for (now of [0, 0, 999, 1000, 2999, 3000]) await tryIt()
    const why = (i: number): string => `a:int4 is not loaded: no ${i}`
    expect(outcomes).toEqual([why(1), why(2), why(2), why(3), why(3), undefined])
  })
})

describe('an unload that fails', () => {
  it('keeps neither others from being unloaded nor the load from being done, and the device goes on', async () => {
    const fake = start({ variants: { ...three, 'd:int4': { weights: 90 } } })
    const empty = fake.ledger()
    for (const name of ['a:int4', 'b:int4']) await answered(ask(fake, name))
    native(fake).unloadFailures.push(new Error('no'))
    expect(await answered(ask(fake, 'd:int4'))).toBe(FinishReason.LENGTH)
    expect(native(fake).log).toEqual(['+a:int4', '+b:int4', '-b:int4', '+d:int4'])
    await fake.residency.load('a:int4')
    await fake.residency.unload('a:int4')
    expect(fake.ledger()).toEqual(empty)
  })
})

describe('keep_alive and pin', () => {
  it('an idle variant goes after its time, a pinned one and a busy one stay', async () => {
    let now = 0
    const variants = {
      'a:int4': { weights: 10, keepAliveMs: 100 },
      'b:int4': { weights: 10, keepAliveMs: 100, pinned: true },
      'c:int4': { weights: 10, keepAliveMs: 300 },
    }
    const fake = start({ variants, clock: () => now })
    fake.residency.start(Object.keys(variants))
    const pass = async (to: number): Promise<string[]> => {
      now = to
      fake.residency.review()
      await fake.residency.settled()
      return native(fake).log.filter((entry) => entry.startsWith('-'))
    }
    expect(await pass(99)).toEqual([])
    await answered(ask(fake, 'a:int4'))
    expect(await pass(150)).toEqual([])
    expect(await pass(199)).toEqual(['-a:int4'])
    expect(await pass(10_000)).toEqual(['-a:int4', '-c:int4'])
    await fake.residency.pin('b:int4', false)
    expect(await pass(10_001)).toEqual(['-a:int4', '-c:int4', '-b:int4'])
  })

  it('the timer does it by itself', async () => {
    const fake = start({ variants: { 'a:int4': { weights: 10, keepAliveMs: 20 } } })
    const gone = new Promise<void>((resolve) => {
      fake.engine.onChange(() => {
        if (fake.engine.variants.get('a:int4')?.loads === 1 && stateOf(fake, 'a:int4') === VariantState.UNLOADED)
          resolve()
      })
    })
    // Nothing else keeps the process alive while the timer is unreferenced.
    const alive = setInterval(() => {}, 1000)
    await answered(ask(fake, 'a:int4'))
    await gone
    clearInterval(alive)
    expect(native(fake).log).toEqual(['+a:int4', '-a:int4'])
  })
})

describe('requests of an operator', () => {
  it('load, unload and pin say why not', async () => {
    const variants = { ...three, 'd:int4': { weights: 101 } }
    const fake = start({ variants })
    await fake.residency.load('a:int4')
    await fake.residency.load('a:int4')
    await fake.residency.pin('a:int4', true)
    const busy = ask(fake, 'b:int4', { maxTokens: 28 })
    while (busy.collector.tokens.length === 0) await turnOfEventLoop()
    const faults = await Promise.all(
      [
        fake.residency.load('nobody'),
        fake.residency.load('d:int4'),
        fake.residency.load('c:int4'),
        fake.residency.unload('a:int4'),
        fake.residency.unload('b:int4'),
        fake.residency.unload('c:int4'),
      ].map((done) =>
        done.then(
          () => 'done',
          (error: { fault?: string }) => error.fault,
        ),
      ),
    )
    expect(faults).toEqual(['not_found', 'does_not_fit', 'busy', 'pinned', 'busy', 'done'])
    await answered(busy)
    await fake.residency.load('c:int4')
    expect(native(fake).log).toEqual(['+a:int4', '+b:int4', '-b:int4', '+c:int4'])
    native(fake).failures.push(new Error('no'))
    await fake.residency.unload('c:int4')
    await expect(fake.residency.load('b:int4')).rejects.toMatchObject({ fault: 'load_failed', message: 'b:int4: no' })
  })
})

describe('several devices', () => {
  it('load at the same time, and a variant goes where there is room', async () => {
    const fake = start({ variants: three, devices: { gpu0: 50, gpu1: 50 } })
    const opens = ['gpu0', 'gpu1'].map((id) => native(fake, id).hold())
    const asked = [ask(fake, 'a:int4'), ask(fake, 'b:int4')]
    await turnOfEventLoop()
    expect(['gpu0', 'gpu1'].map((id) => native(fake, id).loading)).toEqual([1, 1])
    for (const open of opens) open()
    await Promise.all(asked.map(answered))
    expect(new Set(['a:int4', 'b:int4'].map((name) => fake.engine.variants.get(name)?.device)).size).toBe(2)
  })
})

describe('at the start', () => {
  it('what fits is loaded in order, nothing is evicted for it, and the rest is loadable', async () => {
    const fake = start({ variants: three })
    fake.residency.start(Object.keys(three))
    expect(Object.keys(three).map((name) => stateOf(fake, name))).toEqual([2, 2, 2])
    await fake.residency.settled()
    expect(native(fake).log).toEqual(['+a:int4', '+b:int4'])
    const last = fake.engine.variants.get('c:int4')
    if (!last) throw new Error('unreachable')
    expect(last.state).toBe(VariantState.UNLOADED)
    expect(fake.residency.outlook(last)).toMatchObject({ loadable: true, queueable: false })
  })
})

it('100 loads and unloads leave the ledger to the byte, and the counters go on', async () => {
  const fake = start({ variants: three })
  const empty = fake.ledger()
  for (let cycle = 0; cycle < 100; cycle++) {
    await answered(ask(fake, 'a:int4'))
    await fake.residency.unload('a:int4')
    expect(fake.ledger()).toEqual(empty)
  }
  expect(fake.engine.devices[0]?.counters.steps).toBeGreaterThanOrEqual(400)
  expect(fake.engine.devices[0]?.arena.heldSlabs).toBe(0)
})

it('1,000 moves of a flapping budget cause no load that nobody asked for, and the ledger follows each', async () => {
  const fake = start({ variants: three })
  const { slots, managed } = fake.residency
  const ends: FinishReason[] = []
  for (let move = 0; move < 1000; move++) {
    for (const slot of slots.values()) slot.setBudget((move % 2 === 0 ? 45 : 100) * UNIT)
    fake.residency.review()
    await fake.residency.settled()
    expect(fake.slot().overBudget).toBe(false)
    if (move % 25 === 0) ends.push(await answered(ask(fake, Object.keys(three)[ends.length % 3] ?? '')))
  }
  expect(new Set(ends)).toEqual(new Set([FinishReason.LENGTH]))
  const loads = [...managed.values()].reduce((sum, { variant }) => sum + variant.loads, 0)
  expect(loads).toBeLessThanOrEqual(ends.length)
})
