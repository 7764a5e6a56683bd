import assert from 'node:assert/strict'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { KvArena } from '../../engine/kv/arena.js'
import { BlockPool } from '../../engine/kv/block-pool.js'
import { SwapSpace } from '../../engine/kv/swap-space.js'
import { KV_UNIT_BYTES, type KvCopy, type StepResult } from '../../engine/native.js'
import { FairShare } from '../../engine/scheduler/fair-share.js'
import { BatchGovernor } from '../../engine/scheduler/governor.js'
import type { StepPlan } from '../../engine/scheduler/plan.js'
import type { SchedulerLimits } from '../../engine/scheduler/limits.js'
import { Scheduler } from '../../engine/scheduler/scheduler.js'
import { Sequence } from '../../engine/scheduler/sequence.js'
import { Swapper } from '../../engine/scheduler/swapper.js'
import { BatchBuilder, slotState } from '../../engine/step/batch.js'
import { Collector, FAKE_VOCAB, neutralSampling, submitOf } from '../support/fake-engine.js'
import { copyFakeBlocks, fakeAnswer, type FakeBlock, FakeExecutor, type FakeMemory } from '../support/fake-executor.js'

/** Shorter than what the simulated clock passes now and then. */
const GOAL_MS = 20
const SLABS = 6
const SLAB_BYTES = 6 * 256
const LIMITS: SchedulerLimits = {
  maxNumSeqs: 5,
  maxBatchTokens: 12,
  blockSize: 4,
  maxModelLen: 40,
  prefixCaching: true,
}

/** One variant of the simulated device. */
class Model {
  readonly pool: BlockPool
  readonly scheduler: Scheduler
  readonly executor: FakeExecutor
  private readonly builder = new BatchBuilder(LIMITS.blockSize)

  constructor(
    arena: KvArena,
    memory: FakeMemory,
    share: FairShare,
    readonly blockBytes: number,
    swap: SwapSpace | undefined,
    governor: BatchGovernor,
  ) {
    this.pool = new BlockPool(arena, blockBytes)
    const swapper = swap && new Swapper(swap, blockBytes, LIMITS.blockSize)
    this.scheduler = new Scheduler(LIMITS, arena, this.pool, share, () => {}, governor, swapper)
    this.executor = new FakeExecutor(memory, LIMITS.blockSize, FAKE_VOCAB, blockBytes / KV_UNIT_BYTES)
  }

  run(plan: StepPlan): StepResult {
    for (const sequence of plan.admitted) this.executor.setSlot(sequence.slot, slotState(sequence))
    return this.executor.run(this.builder.build(plan))
  }
}

/** Two variants with different block sizes on one arena, stepped by hand with steps left open on purpose. */
class Simulation {
  now = 0
  readonly swap: SwapSpace | undefined
  readonly models: Model[]
  readonly sequences: { sequence: Sequence; collector: Collector; model: Model }[] = []
  private readonly open: { model: Model; plan: StepPlan; result: StepResult }[] = []

  constructor(
    private readonly depth: number,
    swapSlabs = 0,
  ) {
    const arena = new KvArena(SLABS * SLAB_BYTES, SLAB_BYTES)
    const share = new FairShare()
    const memory: FakeMemory = new Map()
    const host = new Map<number, FakeBlock>()
    const copy = (blocks: KvCopy) => {
      copyFakeBlocks(memory, host, blocks)
      return Promise.resolve({ deviceMicros: 1 })
    }
    if (swapSlabs > 0)
      this.swap = new SwapSpace(swapSlabs * SLAB_BYTES, SLAB_BYTES, copy, (error) => assert.fail(String(error)))
    const governor = new BatchGovernor(GOAL_MS)
    this.models = [256, 768].map((blockBytes) => new Model(arena, memory, share, blockBytes, this.swap, governor))
  }

  submit(which: number, prompt: number[], maxTokens: number, tenant: string, priority: number): void {
    const model = this.models[which % this.models.length]
    if (!model) return
    const collector = new Collector()
    const id = this.sequences.length
    const submit = submitOf(id, prompt, { maxTokens, tenant, priority, sampling: neutralSampling({ seed: id % 2 }) })
    const sequence = new Sequence(submit, collector, id, this.now, LIMITS.maxModelLen)
    model.scheduler.add(sequence, this.now)
    this.sequences.push({ sequence, collector, model })
  }

  issue(which: number): boolean {
    const model = this.models[which % this.models.length]
    const plan = this.open.length < this.depth ? model?.scheduler.plan(this.now) : undefined
    if (!model || !plan) return false
    assert(plan.tokens <= LIMITS.maxBatchTokens)
    assert(plan.entries.length <= LIMITS.maxNumSeqs)
    this.open.push({ model, plan, result: model.run(plan) })
    return true
  }

  settle(): boolean {
    const step = this.open.shift()
    step?.model.scheduler.complete(step.plan, step.result, this.now)
    return step !== undefined
  }

  fail(): void {
    const step = this.open.shift()
    step?.model.scheduler.fail(step.plan, { code: 'engine_failed', message: '', retryAfterMs: 0 }, this.now)
  }

  check(): void {
    for (const { pool, scheduler } of this.models) {
      pool.checkInvariant()
      const live = this.sequences.filter((s) => s.model.scheduler === scheduler && s.sequence.state !== 'finished')
      assert.equal(scheduler.size, live.length)
      const held = new Set(live.flatMap(({ sequence }) => sequence.blocks))
      assert.equal(pool.stats().used, held.size)
    }
    this.swap?.checkInvariant()
    const kept = this.sequences.flatMap(
      ({ sequence, model }) => sequence.swapped?.blocks.map(() => model.blockBytes) ?? [],
    )
    assert.equal(
      this.swap?.usedBytes ?? 0,
      kept.reduce((sum, bytes) => sum + bytes, 0),
    )
  }

  /** Steps until nothing is left; the bound is far above what any order needs. */
  drain(): void {
    for (const { sequence } of this.sequences) sequence.pausedSince = undefined
    for (let round = 0; this.models.some(({ scheduler }) => scheduler.size > 0); round++) {
      if (round > 20_000) throw new Error('livelock')
      this.now += 1
      const issued = this.models.map((_, which) => this.issue(which))
      const settled = this.settle()
      if (!issued.includes(true) && !settled) throw new Error('nothing can run, but sequences are left')
    }
    while (this.settle());
  }
}

const command = fc.oneof(
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('issue' as const), which: fc.nat(1) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('settle' as const) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('rounds' as const), count: fc.integer({ min: 1, max: 25 }) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('submit' as const),
      which: fc.nat(1),
      // Few different prompts with long common beginnings, so that the prefix cache matters.
      prompt: fc
        .tuple(fc.constantFrom(1, 4, 5, 8, 9, 12, 16, 29, 30), fc.nat(1))
        .map(([length, last]) => Array.from({ length }, (_, i) => (i < length - 1 ? i % 5 : last))),
      maxTokens: fc.integer({ min: 1, max: 30 }),
      tenant: fc.constantFrom('a', 'a', 'a', 'b'),
      priority: fc.nat(2),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constantFrom('cancel' as const, 'pause' as const, 'resume' as const),
      at: fc.nat(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('wait' as const), ms: fc.integer({ min: 1, max: 3000 }) }) },
)

function apply(simulation: Simulation, step: typeof command extends fc.Arbitrary<infer T> ? T : never): void {
  if (step.kind === 'issue') simulation.issue(step.which)
  else if (step.kind === 'settle') simulation.settle()
  else if (step.kind === 'rounds') {
    for (let i = 0; i < step.count; i++) if (!simulation.issue(i)) simulation.settle()
  } else if (step.kind === 'wait') simulation.now += step.ms
  else if (step.kind === 'submit') {
    simulation.submit(step.which, step.prompt, step.maxTokens, step.tenant, step.priority)
  } else {
    const target = simulation.sequences[step.at % Math.max(1, simulation.sequences.length)]
    if (!target) return
    const { sequence, model } = target
    if (step.kind === 'cancel') model.scheduler.end(sequence, FinishReason.CANCELLED, simulation.now)
    else sequence.pausedSince = step.kind === 'pause' ? simulation.now : undefined
  }
}

describe('scheduler under any order of events', () => {
  for (const depth of [1, 2, 3]) {
    it(`keeps its invariants, loses no sequence and answers as if alone (${depth} steps in flight)`, () => {
      fc.assert(
        fc.property(fc.nat(4), fc.array(command, { minLength: 10, maxLength: 60 }), (swapSlabs, commands) => {
          const simulation = new Simulation(depth, swapSlabs)
          for (const step of commands) {
            apply(simulation, step)
            simulation.check()
          }
          simulation.drain()
          simulation.check()
          for (const { sequence, collector } of simulation.sequences) {
            const { prompt, maxTokens, sampling } = sequence.submit
            const count = Math.min(maxTokens, LIMITS.maxModelLen - prompt.length)
            const alone = fakeAnswer(prompt, count, sampling?.seed ?? 0, FAKE_VOCAB)
            expect(collector.end).toBeDefined()
            const cancelled = collector.end?.finishReason === FinishReason.CANCELLED
            expect(collector.tokens).toEqual(cancelled ? alone.slice(0, collector.tokens.length) : alone)
          }
          for (const { pool } of simulation.models) {
            pool.clearCache()
            expect(pool.stats()).toMatchObject({ used: 0, cached: 0 })
            pool.close()
          }
        }),
        { numRuns: 120 },
      )
    })
  }

  it('survives failed steps anywhere', () => {
    fc.assert(
      fc.property(
        fc.nat(4),
        fc.array(fc.oneof(command, fc.constant({ kind: 'fail' as const })), { maxLength: 60 }),
        (swapSlabs, commands) => {
          const simulation = new Simulation(2, swapSlabs)
          for (const step of commands) {
            if (step.kind === 'fail') simulation.fail()
            else apply(simulation, step)
            simulation.check()
          }
          simulation.drain()
          expect(simulation.sequences.every(({ collector }) => collector.end !== undefined)).toBe(true)
        },
      ),
      { numRuns: 100 },
    )
  })
})
