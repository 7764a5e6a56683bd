/** Whatever is asked of a residency in whatever order: everybody gets tokens or one clear error, and every byte is accounted for. */
import { setTimeout } from 'node:timers/promises'
import * as fc from 'fast-check'
import { expect, it } from 'vitest'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { KV_UNIT_BYTES } from '../../engine/native.js'
import type { Sequence } from '../../engine/scheduler/sequence.js'
import { Collector, FAKE_VOCAB, submitOf } from '../support/fake-engine.js'
import { fakeAnswer } from '../support/fake-executor.js'
import { fakeResidency, UNIT } from '../support/fake-native.js'

const NAMES = ['a:fp16', 'a:int4', 'b:fp16', 'b:int4', 'c:int4']
const variants = {
  'a:fp16': { weights: 60 },
  'a:int4': { weights: 20 },
  'b:fp16': { weights: 50, keepAliveMs: 1 },
  'b:int4': { weights: 15 },
  'c:int4': { weights: 90 },
}

const name = fc.constantFrom(...NAMES)
const operation = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({ kind: fc.constant('ask' as const), name, tokens: fc.integer({ min: 1, max: 28 }) }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('cancel' as const), index: fc.nat(50) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('load' as const), name }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('unload' as const), name }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('pin' as const), name, pinned: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('fail' as const), device: fc.nat(1) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('failUnload' as const), device: fc.nat(1) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('budget' as const),
      device: fc.nat(1),
      units: fc.integer({ min: 30, max: 130 }),
    }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('pass' as const), turns: fc.integer({ min: 1, max: 20 }) }) },
)

interface Asked {
  collector: Collector
  sequence: Sequence | undefined
  prompt: number[]
}

it('every request ends, texts are right, budgets hold, nothing is left', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { minLength: 5, maxLength: 60 }), async (operations) => {
      const fake = fakeResidency({ variants, devices: { gpu0: 100, gpu1: 70 }, turnMs: 1, maxWaiting: 40 })
      const { engine, residency } = fake
      const slots = [fake.slot('gpu0'), fake.slot('gpu1')]
      const asked: Asked[] = []
      const lowered = new Set<number>()
      const act = async (one: (typeof operations)[number]): Promise<void> => {
        if (one.kind === 'ask') {
          const prompt = [asked.length % FAKE_VOCAB, 1]
          const collector = new Collector()
          const submit = submitOf(asked.length, prompt, { variant: one.name, maxTokens: one.tokens })
          asked.push({ collector, prompt, sequence: engine.submit(submit, collector) })
        } else if (one.kind === 'cancel') {
          const sequence = asked[one.index % Math.max(1, asked.length)]?.sequence
          if (sequence) engine.cancel(sequence)
        } else if (one.kind === 'load') residency.load(one.name).catch(() => {})
        else if (one.kind === 'unload') residency.unload(one.name).catch(() => {})
        else if (one.kind === 'pin') await residency.pin(one.name, one.pinned)
        else if (one.kind === 'fail') fake.natives.get(`gpu${one.device}`)?.failures.push(new Error('injected'))
        else if (one.kind === 'failUnload')
          fake.natives.get(`gpu${one.device}`)?.unloadFailures.push(new Error('injected'))
        else if (one.kind === 'budget') {
          lowered.add(one.device)
          slots[one.device]?.setBudget(one.units * UNIT)
          residency.review()
        } else for (let i = 0; i < one.turns; i++) await new Promise((resolve) => setImmediate(resolve))
      }
      const overBudget = (): string[] =>
        slots.flatMap(({ id, overBudget: over }, index) => (over && !lowered.has(index) ? [id] : []))
      for (const one of operations) {
        await act(one)
        expect(overBudget()).toEqual([])
      }
      // What is pinned may leave no room for others: then they wait for it to be let go.
      for (const pinned of NAMES) await residency.pin(pinned, false)
      for (const { collector, prompt } of asked) {
        const { finishReason, error } = await collector.done
        expect(collector.tokens).toEqual(fakeAnswer(prompt, collector.tokens.length, 0, FAKE_VOCAB))
        expect(finishReason).not.toBe(FinishReason.UNSPECIFIED)
        expect(finishReason === FinishReason.REJECTED || finishReason === FinishReason.ERROR).toBe(error !== undefined)
      }
      await residency.settled()
      expect([engine.running, engine.waiting]).toEqual([0, 0])
      for (const device of engine.devices) device.checkInvariants()
      await residency.unloadAll()
      for (const { open } of slots) {
        expect(open.device.ledger.entries.map(({ kind }) => kind)).toEqual(['kv'])
        expect(open.device.arena.heldSlabs).toBe(0)
      }
      await engine.stop(FinishReason.CANCELLED)
    }),
    { numRuns: 60 },
  )
}, 60_000)

/** Far more than the turns of all take. */
const SOON_MS = 2000
const SLAB = 8 * KV_UNIT_BYTES
const traffic = fc.record({
  busy: fc.array(fc.record({ weights: fc.integer({ min: 5, max: 60 }), pinned: fc.boolean() }), {
    minLength: 1,
    maxLength: 3,
  }),
  /** Of the one that is wanted: its weights, or how many slabs of KV memory it leaves beside the first of the others. */
  wanted: fc.oneof(
    fc.record({ weights: fc.integer({ min: 5, max: 95 }) }),
    fc.record({ slabs: fc.integer({ min: 1, max: 8 }) }),
  ),
  clients: fc.integer({ min: 1, max: 12 }),
})

it('whoever is wanted is served soon or refused, though all others always have work', async () => {
  await fc.assert(
    fc.asyncProperty(traffic, async ({ busy, wanted, clients }) => {
      const [first] = busy
      const weights = 'weights' in wanted ? wanted.weights : 99 - (first?.weights ?? 0) - (wanted.slabs * SLAB) / UNIT
      const others = busy.map((one, index) => [`busy${index}:int4`, one] as const)
      const fake = fakeResidency({ variants: { ...Object.fromEntries(others), 'wanted:int4': { weights } }, turnMs: 1 })
      let next = 0
      const ask = async (variant: string, maxTokens: number): Promise<FinishReason> => {
        const collector = new Collector()
        fake.engine.submit(submitOf(next, [next++ % FAKE_VOCAB, 1], { variant, maxTokens }), collector)
        return (await collector.done).finishReason
      }
      const stop = new AbortController()
      const client = async (variant: string): Promise<void> => {
        // What does not fit beside pinned ones is refused at once.
        while ((await ask(variant, 8 + ((next * 7) % 20))) === FinishReason.LENGTH && !stop.signal.aborted);
      }
      const work = others.flatMap(([variant]) => Array.from({ length: clients }, () => client(variant)))
      await ask('busy0:int4', 28)
      const reason = await Promise.race([ask('wanted:int4', 4), setTimeout(SOON_MS, 'late', { ref: false })])
      stop.abort()
      await fake.engine.stop(FinishReason.CANCELLED)
      await Promise.all(work)
      await fake.residency.stop()
      expect([FinishReason.LENGTH, FinishReason.REJECTED]).toContain(reason)
    }),
    { numRuns: 20 },
  )
}, 60_000)
