import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BatchGovernor, nextBudget, type StepReport } from '../../engine/scheduler/governor.js'
import { submitOf } from '../support/fake-engine.js'
import { collect, fakeEngines } from '../support/fake-engines.js'

const BOUNDS = { goalMs: 100, least: 8, most: 512 }
const SIZES = { maxNumSeqs: 64, maxBatchTokens: 512 }

const report = (
  waitMs: number | undefined,
  batchTokens: number,
  elapsedMs = 10,
  stepMs = 10,
  expected = false,
): StepReport => ({ waitMs, batchTokens, stepMs, elapsedMs, expected })

describe('the batch budget after a step', () => {
  it.each<[string, number, StepReport, number]>([
    ['is cut to what would have been within the goal', 512, report(200, 512), 192],
    ['is cut from what was used, not from what was allowed', 512, report(150, 64), 32],
    ['is cut when the goal is near', 100, report(95, 100), 100 * (75 / 95)],
    ['is cut to a quarter at most', 400, report(10_000, 400), 100],
    ['never falls below the least', 12, report(1000, 12), 8],
    ['stays where batch work is not what was waited for', 200, report(1000, 0), 200],
    ['stays in between', 200, report(75, 200), 200],
    ['grows where there is room and it is used', 200, report(30, 200), 225],
    ['stays where there is room and it is not used', 200, report(30, 20), 200],
    ['never grows above the most', 500, report(30, 500), 512],
    ['doubles in a second without interactive requests', 100, report(undefined, 100, 1000), 200],
    ['is cut without them when one that comes next would wait too long', 512, report(undefined, 512, 1000, 900), 128],
    ['keeps to the goal without them when one is expected', 512, report(undefined, 512, 1000, 200, true), 192],
    ['stays in between when one is expected', 200, report(undefined, 200, 1000, 75, true), 200],
    ['stays in between without them', 200, report(undefined, 200, 1000, 200), 200],
    ['doubles with every short step that uses it without them', 64, report(undefined, 64, 10, 10), 128],
    ['grows by what the measured step leaves', 100, report(undefined, 100, 10, 150), 120],
    ['is unbounded at first, within the most', Infinity, report(30, 512), 512],
  ])('%s', (_name, tokens, step, expected) => {
    expect(nextBudget(tokens, step, BOUNDS)).toBeCloseTo(expected)
  })

  it('is all there is without a goal', () => {
    expect(nextBudget(8, report(1000, 8), { ...BOUNDS, goalMs: 0 })).toBe(512)
  })

  it('stays within its bounds, whatever happens', () => {
    const step = fc.record({
      waitMs: fc.option(fc.double({ min: 0, max: 1e6, noNaN: true }), { nil: undefined }),
      batchTokens: fc.nat(512),
      stepMs: fc.double({ min: 0, max: 1e6, noNaN: true }),
      elapsedMs: fc.double({ min: 0, max: 1e6, noNaN: true }),
      expected: fc.boolean(),
    })
    fc.assert(
      fc.property(fc.array(step), fc.integer({ min: 1, max: 5000 }), (steps, goalMs) => {
        let tokens = Infinity
        for (const next of steps) {
          tokens = nextBudget(tokens, next, { ...BOUNDS, goalMs })
          expect(tokens).toBeGreaterThanOrEqual(8)
          expect(tokens).toBeLessThanOrEqual(512)
        }
      }),
    )
  })
})

/** Steps of a device that takes `fixedMs` and `tokenMs` a token, with batch work that takes all it may have. */
function simulate(governor: BatchGovernor, fixedMs: number, tokenMs: number, steps: number, interactive: boolean) {
  const waits: number[] = []
  let now = 0
  for (let i = 0; i < steps; i++) {
    const batchTokens = governor.tokens(SIZES)
    const waitMs = fixedMs + tokenMs * batchTokens
    const plannedAt = now
    now += waitMs
    governor.report(now, { waitMs: interactive ? waitMs : undefined, batchTokens, plannedAt }, SIZES)
    waits.push(waitMs)
  }
  return { waits, tokens: governor.tokens(SIZES) }
}

describe('a governor', () => {
  it('finds what the goal leaves on any device, and gives back what it took', () => {
    const device = fc.record({
      fixedMs: fc.double({ min: 0, max: 50, noNaN: true }),
      tokenMs: fc.double({ min: 0.01, max: 5, noNaN: true }),
    })
    fc.assert(
      fc.property(device, ({ fixedMs, tokenMs }) => {
        const governor = new BatchGovernor(100)
        const { waits, tokens } = simulate(governor, fixedMs, tokenMs, 60, true)
        // A step has half of the goal; it stops growing at three fifths of that.
        const expected = Math.min(512, Math.max(8, Math.floor((29 - fixedMs) / tokenMs)))
        // Once it has settled two steps are within the goal, where the least allows that.
        expect(Math.max(...waits.slice(20))).toBeLessThanOrEqual(Math.max(50, fixedMs + 8 * tokenMs))
        expect(tokens).toBeGreaterThanOrEqual(expected)
        const alone = simulate(governor, fixedMs, tokenMs, 800, false)
        expect(Math.max(...alone.waits.slice(20))).toBeLessThanOrEqual(Math.max(150, fixedMs + 8 * tokenMs))
        const roomy = fixedMs + 512 * tokenMs < 90
        expect(alone.tokens).toBeGreaterThanOrEqual(roomy ? 512 : Math.min(512, (90 - fixedMs) / tokenMs) * 0.7)
      }),
      { numRuns: 100 },
    )
  })

  it('begins carefully on a slow device and reaches everything in a few steps on a fast one', () => {
    const slow = simulate(new BatchGovernor(100), 0, 30, 2, false)
    expect(slow.waits[0]).toBe(64 * 30)
    expect(slow.waits[1]).toBeLessThanOrEqual(480)
    expect(simulate(new BatchGovernor(100), 5, 0.05, 3, false).tokens).toBe(512)
  })

  it('shows the longest recent wait', () => {
    const governor = new BatchGovernor(100)
    governor.report(0, { waitMs: 80, batchTokens: 0, plannedAt: 0 }, SIZES)
    governor.report(10, { waitMs: 20, batchTokens: 0, plannedAt: 0 }, SIZES)
    expect(governor.peakMs).toBeCloseTo(80, 0)
    governor.report(60_000, { waitMs: undefined, batchTokens: 0, plannedAt: 20 }, SIZES)
    expect(governor.peakMs).toBeLessThan(1)
  })
})

const start = fakeEngines()

describe('batch work beside interactive requests', () => {
  const prompt = (first: number, length: number): number[] => Array.from({ length }, (_, i) => (first * 97 + i) % 1000)

  it('has smaller parts of the steps while they wait longer than the goal, and all of them afterwards', async () => {
    let now = 0
    const limits = { maxNumSeqs: 8, maxBatchTokens: 64, maxModelLen: 512 }
    const fake = start({ limits, blocks: 2048, clock: () => now, interactiveGoalMs: 100 })
    const scheduler = fake.engine.devices[0]?.residents[0]?.scheduler
    if (!scheduler) throw new Error('no scheduler')
    const sizes: { interactive: boolean; batchTokens: number }[] = []
    const complete = scheduler.complete.bind(scheduler)
    scheduler.complete = (plan, result) => {
      now += 10 + plan.tokens
      const interactive = plan.entries.some(({ sequence }) => sequence.submit.priority === 0)
      sizes.push({ interactive, batchTokens: plan.batchTokens })
      complete(plan, result, now)
    }
    const batch = Array.from({ length: 30 }, (_, i) =>
      collect(fake, submitOf(i, prompt(i, 500), { priority: 10, maxTokens: 4 })),
    )
    const urgent = collect(fake, submitOf(99, prompt(99, 10), { maxTokens: 20 }))
    await Promise.all([...batch.map(({ done }) => done), urgent.done])
    const beside = sizes.filter(({ interactive }) => interactive).map(({ batchTokens }) => batchTokens)
    expect(beside.length).toBeGreaterThanOrEqual(20)
    // 10 ms and 1 ms a token: with 39 tokens beside the urgent one two steps are just within 100 ms.
    for (const tokens of beside.slice(3)) expect(tokens).toBeLessThanOrEqual(39)
    expect(Math.min(...beside.slice(3))).toBeGreaterThanOrEqual(4)
    expect(Math.max(...sizes.filter(({ interactive }) => !interactive).map(({ batchTokens }) => batchTokens))).toBe(64)
  })

  it('goes on at an eighth of the slots however many interactive requests come', async () => {
    const fake = start({ limits: { maxNumSeqs: 8, maxBatchTokens: 32 }, blocks: 512 })
    const batch = [1, 2].map((i) => collect(fake, submitOf(i, prompt(i, 5), { priority: 10, maxTokens: 8 })))
    let others = 100
    let ended = 0
    // Ten interactive requests at any time, each followed by another one when it ends.
    const follow = async (): Promise<void> => {
      while (batch.some(({ end }) => end === undefined) && ended < 1000) {
        await collect(fake, submitOf(others++, prompt(others, 3), { maxTokens: 3 })).done
        ended++
      }
    }
    await Promise.all(Array.from({ length: 10 }, follow))
    for (const { tokens } of batch) expect(tokens).toHaveLength(8)
    expect(ended).toBeLessThan(1000)
  })

  it('is stepped in turns where not all of it may be', async () => {
    let now = 0
    // A goal that cannot be met: the least there is, four tokens, for seven sequences.
    const limits = { maxNumSeqs: 8, maxBatchTokens: 32 }
    const fake = start({ limits, blocks: 512, clock: () => (now += 1000), interactiveGoalMs: 1 })
    const urgent = collect(fake, submitOf(50, [1], { maxTokens: 60 }))
    const batch = [1, 2, 3, 4, 5, 6, 7].map((i) => collect(fake, submitOf(i, [i], { priority: 10, maxTokens: 20 })))
    await Promise.all(batch.map(({ done }) => done))
    expect(urgent.tokens.length).toBeGreaterThan(30)
    for (const { tokens } of batch) expect(tokens).toHaveLength(20)
  })
})
