import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { countAhead, QueuePace } from '../../engine/scheduler/queue-pace.js'
import { Sequence } from '../../engine/scheduler/sequence.js'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { Collector, FAKE_VOCAB, type FakeEngine, submitOf } from '../support/fake-engine.js'
import { collect, fakeEngines } from '../support/fake-engines.js'
import { fakeAnswer } from '../support/fake-executor.js'

const waiting = (...submits: [priority: number, tenant: string][]): Sequence[] =>
  submits.map(
    ([priority, tenant], i) => new Sequence(submitOf(i, [1], { priority, tenant }), new Collector(), i, 0, 64),
  )

describe('the pace of a queue', () => {
  it('is that of its ends, and nothing of the time before there was a queue', () => {
    const pace = new QueuePace()
    pace.ended(1000)
    pace.observe(5, 60_000)
    for (let i = 1; i <= 20; i++) pace.ended(60_000 + i * 100)
    expect(pace.perSecond(62_000)).toBeCloseTo(10)
  })

  it('is unknown while little happened, and again after the queue was empty', () => {
    const pace = new QueuePace()
    pace.observe(5, 0)
    for (let i = 0; i < 7; i++) pace.ended(500)
    expect(pace.perSecond(2000)).toBeUndefined()
    pace.ended(1500)
    expect(pace.perSecond(900)).toBeUndefined()
    expect(pace.perSecond(2000)).toBeCloseTo(4)
    pace.observe(0, 2000)
    pace.observe(1, 2000)
    expect(pace.perSecond(9000)).toBeUndefined()
  })

  it('forgets what is long ago', () => {
    const pace = new QueuePace()
    pace.observe(5, 0)
    for (let i = 1; i <= 400; i++) pace.ended(i * 100)
    for (let i = 1; i <= 100; i++) pace.ended(40_000 + i * 1000)
    expect(pace.perSecond(140_000)).toBeCloseTo(1, 0)
  })
})

describe('who goes before a newcomer', () => {
  it.each<[string, Sequence[], number, string, number]>([
    ['nobody in an empty queue', [], 0, 'a', 0],
    ['all that is more urgent', waiting([-1, 'b'], [-1, 'b'], [5, 'b']), 0, 'a', 2],
    ['nobody of another tenant where it has nothing yet', waiting([0, 'b'], [0, 'b'], [0, 'b']), 0, 'a', 0],
    [
      'its own, with a turn of each other tenant between',
      waiting([0, 'a'], [0, 'a'], [0, 'b'], [0, 'b'], [0, 'b'], [0, 'c']),
      0,
      'a',
      6,
    ],
    ['never more than there are', waiting([0, 'a'], [0, 'a'], [0, 'b']), 0, 'a', 3],
  ])('%s', (_name, queue, priority, tenant, ahead) => {
    expect(countAhead(queue, { priority, tenant })).toBe(ahead)
  })
})

const start = fakeEngines()

describe('an urgent request', () => {
  it.each([
    ['slot', { limits: { maxNumSeqs: 2, maxBatchTokens: 32 }, blocks: 64 }, [7, 8]],
    ['blocks', { limits: { maxNumSeqs: 8, maxBatchTokens: 32 }, blocks: 20 }, Array.from({ length: 56 }, (_, i) => i)],
  ])('takes the %s of less urgent ones, whose text stays the same', async (_name, options, prompt) => {
    const fake = start(options)
    const batch = [0, 1, 2, 3].map((i) => collect(fake, submitOf(i + 1, [i, i + 1], { priority: 10, maxTokens: 58 })))
    const [first] = batch
    while ((first?.tokens.length ?? 0) < 10) await new Promise((resolve) => setImmediate(resolve))
    const urgent = collect(fake, submitOf(9, prompt, { maxTokens: 4 }))
    await urgent.done
    expect(batch.filter(({ end }) => end === undefined)).toHaveLength(4)
    expect(urgent.tokens).toEqual(fakeAnswer(prompt, 4, 0, FAKE_VOCAB))
    await Promise.all(batch.map(({ done }) => done))
    for (const [i, { tokens }] of batch.entries()) expect(tokens).toEqual(fakeAnswer([i, i + 1], 58, 0, FAKE_VOCAB))
  })

  it('waits for one that is as urgent', async () => {
    const fake = start({ limits: { maxNumSeqs: 1 } })
    const first = collect(fake, submitOf(1, [1], { maxTokens: 40 }))
    while (first.tokens.length < 5) await new Promise((resolve) => setImmediate(resolve))
    await collect(fake, submitOf(2, [2], { maxTokens: 1 })).done
    expect(first.end).toBeDefined()
    expect(fake.engine.devices[0]?.residents[0]?.scheduler.counters.preemptions).toBe(0)
  })

  it('is served before all that is less urgent, whatever comes when; every text is exact', async () => {
    const request = fc.record({ priority: fc.constantFrom(-5, 0, 10), maxTokens: fc.integer({ min: 1, max: 20 }) })
    await fc.assert(
      fc.asyncProperty(fc.array(request, { minLength: 1, maxLength: 20 }), async (requests) => {
        const fake = start({ limits: { maxNumSeqs: 2 }, blocks: 16 })
        const all = requests.map((fields, i) => collect(fake, submitOf(i + 1, [i], fields)))
        await Promise.all(all.map(({ done }) => done))
        for (const [i, { tokens }] of all.entries()) {
          expect(tokens).toEqual(fakeAnswer([i], requests[i]?.maxTokens ?? 0, 0, FAKE_VOCAB))
        }
      }),
      { numRuns: 40 },
    )
  })
})

describe('a deadline', () => {
  /** An engine with one slot that has just ended ten requests, 200 ms each; about `queued` more wait. */
  async function busy(queued: number): Promise<FakeEngine> {
    let now = 0
    const fake = start({ limits: { maxNumSeqs: 1 }, clock: () => now })
    const all = Array.from({ length: 10 + queued }, (_, i) =>
      collect(fake, submitOf(i + 1, [i], { maxTokens: 20, tenant: 'b' })),
    )
    for (const collector of all.slice(0, 10)) {
      await collector.done
      now += 200
    }
    return fake
  }

  it('that the queue alone makes too late is refused at once, with when to come back', async () => {
    const fake = await busy(40)
    const scheduler = fake.engine.devices[0]?.residents[0]?.scheduler
    const asked = submitOf(99, [1], { deadlineMs: 1, tenant: 'b' })
    const expected = scheduler?.expectedWaitMs(asked, fake.engine.options.clock()) ?? 0
    expect(expected).toBeGreaterThan(1000)
    const late = collect(fake, asked)
    expect(late.end).toMatchObject({ finishReason: FinishReason.REJECTED, error: { code: 'deadline_exceeded' } })
    expect(late.end?.error?.retryAfterMs).toBeGreaterThan(900)
    // Enough time, or more urgency: it is taken.
    expect(collect(fake, { ...asked, sequenceId: 100, deadlineMs: 60_000 }).end).toBeUndefined()
    expect(collect(fake, { ...asked, sequenceId: 101, priority: -1, deadlineMs: 5000 }).end).toBeUndefined()
    expect(collect(fake, { ...asked, sequenceId: 102, prompt: [1, 2], replayedTokens: 1 }).end).toBeUndefined()
  })

  it('is held against the pace since others have had to wait, not since a preempted request came', async () => {
    let now = 0
    const fake = start({ limits: { maxNumSeqs: 1 }, clock: () => now })
    const old = collect(fake, submitOf(1, [1], { priority: 10, maxTokens: 58 }))
    while (old.tokens.length === 0) await new Promise((resolve) => setImmediate(resolve))
    now = 300_000
    const urgent = Array.from({ length: 10 }, (_, i) => collect(fake, submitOf(i + 2, [i], { maxTokens: 2 })))
    for (const collector of urgent) {
      await collector.done
      now += 200
    }
    const scheduler = fake.engine.devices[0]?.residents[0]?.scheduler
    expect([old.end, scheduler?.counters.preemptions]).toEqual([undefined, 1])
    expect(scheduler?.expectedWaitMs(submitOf(99, [1], { priority: 10 }), now)).toBeCloseTo(200)
  })
})

it('a queue that was taken back leaves no pace behind', async () => {
  let now = 0
  const fake = start({ limits: { maxNumSeqs: 1 }, clock: () => now })
  const scheduler = fake.engine.devices[0]?.residents[0]?.scheduler
  const all = Array.from({ length: 14 }, (_, i) => collect(fake, submitOf(i + 1, [i], { maxTokens: 20 })))
  for (const collector of all.slice(0, 10)) {
    await collector.done
    now += 200
  }
  expect(scheduler?.expectedWaitMs(submitOf(99, [1]), now)).toBeGreaterThan(0)
  expect(scheduler?.withdraw(true)).toHaveLength(4)
  expect(scheduler?.expectedWaitMs(submitOf(99, [1]), now)).toBeUndefined()
})
