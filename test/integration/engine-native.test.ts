/** The engine over the real addon: batching, caching and preemption must not change a single token. */
import assert from 'node:assert/strict'
import { afterEach, describe, expect, it } from 'vitest'
import { FinishReason, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, NativeDevice, NativeModel } from '../../engine/native.js'
import { kvBlockBytes } from '../../engine/residency/estimate.js'
import {
  Collector,
  type FakeEngine,
  fakeEngine,
  type FakeEngineOptions,
  neutralSampling,
  submitOf,
} from '../support/fake-engine.js'
import { smollm2Request } from '../support/native-model.js'
import { stories260kRequest } from '../support/stories260k.js'

const open: { device: NativeDevice; model: NativeModel; fake: FakeEngine }[] = []

/** An engine on the CPU with one resident model and an arena of `blocks` blocks. */
async function engineOn(request: LoadRequest, blocks: number, options: FakeEngineOptions): Promise<FakeEngine> {
  const { spec } = request
  const blockBytes = kvBlockBytes(spec, request.blockSize)
  const device = loadAddon().openDevice({ kind: 'cpu', index: 0, threads: 2, kvArenaBytes: blocks * blockBytes })
  const model = await device.loadModel(request)
  assert.equal(model.blockBytes, blockBytes)
  const limits = { blockSize: request.blockSize, ...options.limits }
  const fake = fakeEngine({
    ...options,
    limits,
    blocks,
    model: { executor: model, blockBytes, vocabSize: spec.vocabSize },
  })
  open.push({ device, model, fake })
  return fake
}

afterEach(async () => {
  for (const { device, model, fake } of open.splice(0)) {
    await fake.engine.stop(FinishReason.CANCELLED)
    await model.unload()
    await device.close()
  }
})

/** A small generator: tests need the same prompts every time. */
function randoms(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

/** Requests of mixed lengths, tenants and sampling, some with a common beginning. */
function mixedSubmits(count: number, vocab: number, longest: number, longestAnswer: number): Submit[] {
  const random = randoms(7)
  const shared = Array.from({ length: longest }, () => 3 + random(vocab - 3))
  return Array.from({ length: count }, (_, id) => {
    const length = 1 + random(longest)
    const common = id % 3 === 0 ? length - 1 : 0
    const prompt = Array.from({ length }, (__, i) => (i < common ? (shared[i] ?? 0) : 3 + random(vocab - 3)))
    const sampling = neutralSampling({
      temperature: id % 2,
      topP: id % 4 === 1 ? 0.9 : 1,
      topK: id % 5 === 1 ? 40 : 0,
      seed: id,
      repetitionPenalty: id % 7 === 0 ? 1.2 : 1,
    })
    return submitOf(id, prompt, {
      sampling,
      maxTokens: 1 + random(longestAnswer),
      tenant: `t${id % 4}`,
      priority: id % 2,
    })
  })
}

async function runTogether({ engine }: FakeEngine, submits: readonly Submit[]): Promise<number[][]> {
  const collectors = submits.map((submit) => {
    const collector = new Collector()
    engine.submit(submit, collector)
    return collector
  })
  await Promise.all(collectors.map((collector) => collector.done))
  return collectors.map(({ tokens }) => tokens)
}

async function runAlone(fake: FakeEngine, submits: readonly Submit[]): Promise<number[][]> {
  const texts: number[][] = []
  for (const submit of submits) texts.push(...(await runTogether(fake, [submit])))
  return texts
}

function assertIdle({ engine, device }: FakeEngine): void {
  device.checkInvariants()
  assert.deepEqual([engine.running, engine.waiting], [0, 0])
  for (const { scheduler } of device.residents) assert.equal(scheduler.pool.stats().used, 0)
}

describe('engine over the CPU backend', () => {
  for (const depth of [1, 2]) {
    it(`64 mixed sequences give the text each gives alone (${depth} steps in flight)`, async () => {
      const request = { ...stories260kRequest('int8'), maxSlots: 64, maxBatchTokens: 96 }
      const limits = { maxNumSeqs: 64, maxBatchTokens: 96, maxModelLen: 160 }
      // Too few blocks for all of them: some are preempted.
      const fake = await engineOn(request, 64, { limits, depth, maxWaiting: 100 })
      const submits = mixedSubmits(64, 512, 100, 60)
      const together = await runTogether(fake, submits)
      assertIdle(fake)
      const counters = { ...fake.device.residents[0]?.scheduler.counters }
      expect(counters.preemptions).toBeGreaterThan(0)
      expect(await runAlone(fake, submits)).toEqual(together)
      assertIdle(fake)
    })
  }

  it('reports the same prompt log probabilities whole, in chunks and beside cached blocks', async () => {
    const request = { ...stories260kRequest('fp16'), maxSlots: 8, maxBatchTokens: 128 }
    const prompt = mixedSubmits(1, 512, 90, 1)[0]?.prompt ?? []
    const long = [...prompt, ...prompt, ...prompt].slice(0, 70)
    const scored: number[][] = []
    for (const maxBatchTokens of [128, 16]) {
      const fake = await engineOn(request, 64, { limits: { maxBatchTokens, maxModelLen: 128 } })
      for (const maxTokens of [4, 0]) {
        const collector = new Collector()
        fake.engine.submit(submitOf(1, long, { promptLogprobs: true, maxTokens }), collector)
        await collector.done
        expect(collector.tokens).toHaveLength(maxTokens)
        expect(collector.deltas[0]?.start?.cachedTokens).toBe(0)
        scored.push(collector.deltas[0]?.promptLogprobs.map(({ logprob }) => logprob) ?? [])
      }
    }
    expect(scored[0]).toHaveLength(70)
    expect(scored[0]?.[0]).toBeNaN()
    expect(scored[0]?.slice(1).every((logprob) => logprob < 0)).toBe(true)
    for (const other of scored.slice(1)) expect(other).toEqual(scored[0])
  })

  it('1,000 requests submitted and cancelled leave no sequence and no block', async () => {
    const request = { ...stories260kRequest('int8'), maxSlots: 16, maxBatchTokens: 64 }
    const fake = await engineOn(request, 128, { limits: { maxNumSeqs: 16, maxBatchTokens: 64, maxModelLen: 128 } })
    const random = randoms(3)
    const reasons: FinishReason[] = []
    for (let cycle = 0; cycle < 1000; cycle++) {
      const collector = new Collector()
      const sequence = fake.engine.submit(submitOf(cycle, [1, 2 + random(100), 5], { maxTokens: 100 }), collector)
      // Cancelled while waiting, in its first step, or later.
      for (let turns = random(4); turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve))
      if (sequence) fake.engine.cancel(sequence)
      reasons.push((await collector.done).finishReason)
    }
    // A model this small may write all its tokens in one turn of a busy event loop, before the cancellation.
    expect(new Set([...reasons, FinishReason.CANCELLED, FinishReason.LENGTH]).size).toBe(2)
    expect(reasons.filter((reason) => reason === FinishReason.CANCELLED).length).toBeGreaterThan(900)
    assertIdle(fake)
  })

  it('the embedded model at int4: 12 sequences give the text each gives alone', async () => {
    const request = { ...smollm2Request('int4', 128), maxSlots: 12 }
    const limits = { maxNumSeqs: 12, maxBatchTokens: 128, maxModelLen: 128 }
    const fake = await engineOn(request, 96, { limits })
    const submits = mixedSubmits(12, 49152, 40, 12)
    const together = await runTogether(fake, submits)
    expect(await runAlone(fake, submits)).toEqual(together)
    assertIdle(fake)
  })
})
