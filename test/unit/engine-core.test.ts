import { describe, expect, it } from 'vitest'
import { KV_UNIT_BYTES } from '../../engine/native.js'
import { StepHungError } from '../../engine/step/step-loop.js'
import { FinishReason, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import { Collector, FAKE_VOCAB, neutralSampling, submitOf } from '../support/fake-engine.js'
import { collect, fakeEngines } from '../support/fake-engines.js'
import { fakeAnswer, FakeExecutor } from '../support/fake-executor.js'

const start = fakeEngines()

const range = (length: number, from = 0): number[] => Array.from({ length }, (_, i) => from + i)

describe('a step that hangs', () => {
  it('loses the device after step_timeout', async () => {
    const steps: ((error: Error) => void)[] = []
    const step = () => new Promise<never>((_, reject) => steps.push(reject))
    const executor = { setSlot: () => undefined, giveMasks: () => undefined, step }
    const lost = new Promise<unknown>((onDeviceFailed) => {
      const model = { executor, blockBytes: KV_UNIT_BYTES, vocabSize: FAKE_VOCAB }
      collect(start({ model, stepTimeoutMs: 20, onDeviceFailed }), submitOf(1, [1, 2]))
    })
    expect(await lost).toEqual(new StepHungError(20, 1))
    for (const reject of steps) reject(new Error('interrupted'))
  })
})

describe('end of a sequence', () => {
  it('stops at a stop token, which is reported, but not before min_tokens', async () => {
    const fake = start()
    const answer = fakeAnswer([1, 2], 8, 0, FAKE_VOCAB)
    const stopTokenIds = [answer[2] ?? -1]
    const stopped = collect(fake, submitOf(1, [1, 2], { sampling: neutralSampling({ stopTokenIds }) }))
    expect((await stopped.done).finishReason).toBe(FinishReason.STOP)
    expect(stopped.tokens).toEqual(answer.slice(0, 3))
    // The fake does not mask, as the native side would: what counts here is that the stop is not taken.
    const longer = collect(fake, submitOf(2, [1, 2], { sampling: neutralSampling({ stopTokenIds, minTokens: 3 }) }))
    expect((await longer.done).finishReason).toBe(FinishReason.LENGTH)
  })

  it('ends with LENGTH at max_tokens and at max_model_len', async () => {
    const fake = start({ limits: { maxModelLen: 16 } })
    const byTokens = collect(fake, submitOf(1, [1], { maxTokens: 3 }))
    const byContext = collect(fake, submitOf(2, range(10), { maxTokens: 100 }))
    expect((await byTokens.done).finishReason).toBe(FinishReason.LENGTH)
    expect((await byContext.done).finishReason).toBe(FinishReason.LENGTH)
    expect([byTokens.tokens.length, byContext.tokens.length]).toEqual([3, 6])
  })

  it('continues a replay: replayed output counts for min_tokens, max_tokens counts new tokens', async () => {
    const fake = start()
    const answer = fakeAnswer([1, 2], 8, 0, FAKE_VOCAB)
    const replay = {
      replayedTokens: 3,
      maxTokens: 5,
      sampling: neutralSampling({ stopTokenIds: [answer[4] ?? -1], minTokens: 4 }),
    }
    const resumed = collect(fake, submitOf(1, [1, 2, ...answer.slice(0, 3)], replay))
    expect((await resumed.done).finishReason).toBe(FinishReason.STOP)
    expect(resumed.tokens).toEqual(answer.slice(3, 5))
  })

  it('scores a prompt without sampling, and answers an empty request at once', async () => {
    const fake = start()
    const scored = collect(fake, submitOf(1, [5, 6, 7], { maxTokens: 0, promptLogprobs: true }))
    expect((await scored.done).finishReason).toBe(FinishReason.LENGTH)
    expect(scored.deltas[0]?.promptLogprobs.map(({ token }) => token)).toEqual([5, 6, 7])
    expect(scored.deltas[0]?.promptLogprobs[0]?.logprob).toBeNaN()
    expect(collect(fake, submitOf(2, [5], { maxTokens: 0 })).end?.finishReason).toBe(FinishReason.LENGTH)
  })

  it('reports log probabilities with as many alternatives as asked, whatever others ask', async () => {
    const fake = start()
    const some = collect(fake, submitOf(1, [1], { sampling: neutralSampling({ topLogprobs: 2 }) }))
    const most = collect(fake, submitOf(2, [2], { sampling: neutralSampling({ topLogprobs: 5 }) }))
    const none = collect(fake, submitOf(3, [3]))
    await Promise.all([some.done, most.done, none.done])
    const widths = [some, most, none].map(({ deltas }) => deltas[0]?.logprobs[0]?.topTokens.length)
    expect(widths).toEqual([2, 5, undefined])
  })

  it('ends what misses its deadline, waiting or running', async () => {
    const fake = start({ limits: { maxNumSeqs: 1, maxModelLen: 10_000 }, blocks: 4000 })
    const running = collect(fake, submitOf(1, [1], { maxTokens: 9000, deadlineMs: 50 }))
    const waiting = collect(fake, submitOf(2, [2], { maxTokens: 9000, deadlineMs: 20 }))
    expect((await waiting.done).finishReason).toBe(FinishReason.DEADLINE)
    expect((await running.done).finishReason).toBe(FinishReason.DEADLINE)
    expect(waiting.tokens).toHaveLength(0)
  })
})

describe('failures', () => {
  it('a failed step ends its sequences with engine_failed; later ones run', async () => {
    const fake = start()
    const executor = fake.executor
    if (!(executor instanceof FakeExecutor)) throw new Error('not the fake')
    executor.failWith = new Error('broken')
    const failed = collect(fake, submitOf(1, range(9)))
    expect(await failed.done).toMatchObject({ finishReason: FinishReason.ERROR, error: { code: 'engine_failed' } })
    const next = collect(fake, submitOf(2, range(9)))
    expect((await next.done).finishReason).toBe(FinishReason.LENGTH)
    expect(next.deltas[0]?.start?.cachedTokens).toBe(0)
  })

  it('says when the device is lost', async () => {
    const lost = new Promise((resolve) => {
      const fake = start({ onDeviceFailed: resolve })
      if (fake.executor instanceof FakeExecutor) {
        fake.executor.failWith = Object.assign(new Error('gone'), { code: 'device_failed' })
      }
      collect(fake, submitOf(1, [1]))
    })
    expect(await lost).toMatchObject({ code: 'device_failed' })
  })
})

describe('prefix cache', () => {
  it('reuses full blocks of the same tenant only', async () => {
    const fake = start()
    const prompt = range(17)
    const cached = async (id: number, tenant: string): Promise<number | undefined> => {
      const collector = collect(fake, submitOf(id, prompt, { tenant }))
      await collector.done
      expect(collector.tokens).toEqual(fakeAnswer(prompt, 8, 0, FAKE_VOCAB))
      return collector.deltas[0]?.start?.cachedTokens
    }
    expect([await cached(1, 'a'), await cached(2, 'a'), await cached(3, 'b'), await cached(4, 'b')]).toEqual([
      0, 16, 0, 16,
    ])
  })

  it('is not used where the prompt is scored, and always leaves a token to compute', async () => {
    const fake = start()
    const prompt = range(16)
    await collect(fake, submitOf(1, prompt)).done
    const again = collect(fake, submitOf(2, prompt))
    await again.done
    expect(again.deltas[0]?.start?.cachedTokens).toBe(12)
    const scored = collect(fake, submitOf(3, prompt, { promptLogprobs: true }))
    await scored.done
    expect(scored.deltas[0]?.start?.cachedTokens).toBe(0)
    expect(scored.deltas[0]?.promptLogprobs).toHaveLength(16)
  })
})

describe('queue', () => {
  it('refuses beyond its bound with the time after which to retry', () => {
    const fake = start({ maxWaiting: 2 })
    const all = range(3).map((id) => collect(fake, submitOf(id, [1])))
    expect(all.map(({ end }) => end?.error?.code)).toEqual([undefined, undefined, 'queue_full'])
    expect(all[2]?.end?.finishReason).toBe(FinishReason.REJECTED)
    expect(all[2]?.end?.error?.retryAfterMs).toBeGreaterThan(0)
  })

  it('has room for all replays after a failover beside as many others as ever', () => {
    const fake = start({ maxWaiting: 2 })
    const replays = range(4).map((id) => collect(fake, submitOf(id, [1, 2], { replayedTokens: 1 })))
    const others = range(3).map((id) => collect(fake, submitOf(10 + id, [1])))
    const urgent = collect(fake, submitOf(20, [1], { priority: -1 }))
    expect(replays.map(({ end }) => end)).toEqual(replays.map(() => undefined))
    expect(others.map(({ end }) => end?.error?.code)).toEqual([undefined, 'queue_full', 'queue_full'])
    expect(urgent.end).toBeUndefined()
  })

  it('gives a full queue fairly: a newcomer of a small tenant or better priority displaces the newest of the largest', () => {
    const fake = start({ maxWaiting: 4 })
    const greedy = range(4).map((id) => collect(fake, submitOf(id, [1], { tenant: 'greedy' })))
    const modest = collect(fake, submitOf(10, [1], { tenant: 'modest' }))
    const urgent = collect(fake, submitOf(11, [1], { tenant: 'greedy', priority: -1 }))
    const late = collect(fake, submitOf(12, [1], { tenant: 'greedy', priority: 1 }))
    expect(greedy.map(({ end }) => end?.error?.code)).toEqual([undefined, undefined, 'queue_full', 'queue_full'])
    expect([modest.end, urgent.end]).toEqual([undefined, undefined])
    expect(late.end?.error?.code).toBe('queue_full')
  })

  it('takes no more of one key and one priority than the bound says, however much room there is', () => {
    const fake = start({ maxWaiting: 100, maxWaitingPerTenant: 2 })
    let id = 0
    const codes = (fields: Partial<Submit>, count: number) =>
      range(count).map(() => collect(fake, submitOf(id++, [1, 2], fields)).end?.error?.code)
    expect(codes({ tenant: 'a' }, 3)).toEqual([undefined, undefined, 'queue_full'])
    expect(codes({ tenant: 'a', priority: 10 }, 3)).toEqual([undefined, undefined, 'queue_full'])
    expect(codes({ tenant: 'b' }, 1)).toEqual([undefined])
    expect(codes({ tenant: 'a', replayedTokens: 1 }, 2)).toEqual([undefined, undefined])
    const refused = collect(fake, submitOf(id++, [1], { tenant: 'a' }))
    expect(refused.end?.error?.message).toBe('2 requests of this key and priority are waiting already')
    expect(refused.end?.error?.retryAfterMs).toBeGreaterThan(0)
  })

  it('serves the tokens of two keys that both wait by their weights', async () => {
    const fake = start({ limits: { maxNumSeqs: 1, prefixCaching: false }, maxWaiting: 200 })
    const order: string[] = []
    const ask = (tenant: string, weight: number): Promise<unknown>[] =>
      range(40).map((i) => {
        const request = submitOf(order.length + i + weight * 1000, [1, 2, 3], { tenant, weight, maxTokens: 2 })
        return collect(fake, request).done.then(() => order.push(tenant))
      })
    await Promise.all([...ask('light', 1), ...ask('heavy', 3)])
    const heavy = order.slice(0, 40).filter((tenant) => tenant === 'heavy').length
    expect(heavy).toBeGreaterThanOrEqual(29)
    expect(heavy).toBeLessThanOrEqual(31)
  })

  it('admits by priority, then to the tenant served least, then by arrival', async () => {
    const fake = start({ limits: { maxNumSeqs: 1, prefixCaching: false } })
    const order: number[] = []
    const track = (id: number, overrides: Partial<Submit>): Promise<number> =>
      collect(fake, submitOf(id, [1, 2, 3], { maxTokens: 2, ...overrides })).done.then(() => order.push(id))
    await Promise.all([
      track(1, { tenant: 'a' }),
      track(2, { tenant: 'a' }),
      track(3, { tenant: 'a' }),
      track(4, { tenant: 'b' }),
      track(5, { tenant: 'b' }),
      track(6, { tenant: 'b', priority: -1 }),
      track(7, { tenant: 'c', priority: 1 }),
    ])
    // 6 counts against b; after 1, a is level with it, and among equals the first that came goes first.
    expect(order).toEqual([6, 1, 2, 4, 3, 5, 7])
  })
})

describe('held sequences', () => {
  it('are not scheduled, keep their blocks, and go on when released', async () => {
    const fake = start()
    const collector = new Collector()
    const sequence = fake.engine.submit(submitOf(1, [1, 2], { maxTokens: 20 }), collector)
    if (!sequence) throw new Error('refused')
    while (collector.tokens.length < 3) await new Promise((resolve) => setImmediate(resolve))
    fake.engine.setPaused(sequence, true)
    // A step may be under way.
    for (let i = 0; i < 3; i++) await new Promise((resolve) => setImmediate(resolve))
    const count = collector.tokens.length
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve))
    expect(collector.tokens).toHaveLength(count)
    expect(fake.device.residents[0]?.scheduler.pool.stats().used).toBeGreaterThan(0)
    fake.engine.setPaused(sequence, false)
    await collector.done
    expect(collector.tokens).toEqual(fakeAnswer([1, 2], 20, 0, FAKE_VOCAB))
  })

  it('give way to others after a second, and end after a minute', () => {
    let now = 0
    const fake = start({ limits: { maxNumSeqs: 1 }, clock: () => now })
    const [resident] = fake.device.residents
    const scheduler = resident?.scheduler
    const held = new Collector()
    const other = new Collector()
    const sequence = fake.engine.submit(submitOf(1, [1, 2]), held)
    if (!sequence || !scheduler) throw new Error('refused')
    expect(scheduler.plan(now)?.entries).toHaveLength(1)
    fake.engine.setPaused(sequence, true)
    fake.engine.submit(submitOf(2, [3, 4]), other)
    now = 999
    expect(scheduler.plan(now)).toBeUndefined()
    now = 1000
    scheduler.plan(now)
    expect(scheduler.plan(now)?.entries[0]?.sequence.id).toBe(2)
    expect(sequence.state).toBe('waiting')
    now = 59_999
    scheduler.sweep(now)
    expect(held.end).toBeUndefined()
    now = 60_000
    scheduler.sweep(now)
    expect(held.end?.finishReason).toBe(FinishReason.CANCELLED)
  })
})
