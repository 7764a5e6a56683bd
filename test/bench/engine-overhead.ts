/**
 * Host time of one engine step at batch 1, 16 and 64 decoding sequences: plan, batch arrays, postprocess, delivery.
 * Run: npx tsx test/bench/engine-overhead.ts
 */
import type { StepBatch, StepResult } from '../../engine/native.js'
import { fakeEngine, neutralSampling, submitOf } from '../support/fake-engine.js'

const STEPS = 3000
const CONTEXT = 1024

/** Host microseconds per step, median, with `sequences` decoding after a context of CONTEXT tokens. */
function measure(sequences: number): number {
  const limits = { maxNumSeqs: 64, maxBatchTokens: 512, blockSize: 16, maxModelLen: 8192, prefixCaching: true }
  let batch: StepBatch | undefined
  const executor = {
    setSlot: () => {},
    giveMasks: () => {},
    step: (given: StepBatch) => {
      batch = given
      return new Promise<StepResult>(() => {})
    },
  }
  const fake = fakeEngine({
    limits,
    blocks: 64 * 300,
    maxWaiting: 100,
    model: { executor, blockBytes: 256, vocabSize: 1000 },
  })
  const runner = fake.device.residents[0]?.runner
  if (!runner) throw new Error('unreachable')
  // The loop itself would wait for the executor: the steps are taken by hand instead.
  void fake.device.loop.stop()
  const owner = { blockedSince: undefined, deliver: () => {} }
  for (let id = 0; id < sequences; id++) {
    const prompt = Array.from({ length: CONTEXT }, (_, i) => (i * 7 + id) % 1000)
    fake.engine.submit(submitOf(id, prompt, { maxTokens: 7000, sampling: neutralSampling() }), owner)
  }
  const times: number[] = []
  for (let step = 0; step < STEPS; step++) {
    const startedAt = performance.now()
    const issued = runner.issue(startedAt)
    if (!issued || !batch) break
    const rows = batch.rowTokens.length
    runner.complete(issued.plan, emptyResult(rows), startedAt)
    if (issued.plan.entries.length === sequences && issued.plan.tokens === sequences) {
      times.push((performance.now() - startedAt) * 1000)
    }
  }
  clearInterval(Reflect.get(fake.engine, 'sweeper'))
  times.sort((a, b) => a - b)
  return times[Math.floor(times.length / 2)] ?? Number.NaN
}

function emptyResult(rows: number): StepResult {
  const none = new Float32Array()
  return {
    tokens: new Int32Array(rows).fill(5),
    logprobs: none,
    ranks: new Int32Array(),
    topTokens: new Int32Array(),
    topLogprobs: none,
    deviceMicros: 0,
  }
}

for (const sequences of [1, 16, 64]) {
  console.log(`batch ${sequences}: ${measure(sequences).toFixed(1)} µs of host time per step`)
}
