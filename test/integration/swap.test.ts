/** Preempted sequences of the real addon: their blocks go to host memory and come back, and the text is as if nobody came between. */
import { afterEach, describe, expect, it } from 'vitest'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { type Answer, type InProcessEngine, engineInProcess, tinyModel } from '../support/engine-in-process.js'
import type { SwapSpace } from '../../engine/kv/swap-space.js'
import { Collector, neutralSampling, submitOf } from '../support/fake-engine.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'

/** Each sequence takes six. */
const BLOCKS = 14
const open: InProcessEngine[] = []
afterEach(async () => {
  for (const box of open.splice(0)) await box.close()
})

/** A tiny model, or another one, with KV memory for about two of the sequences below. */
async function start(swap: number, file = tinyModel('f16')): Promise<InProcessEngine> {
  const box = engineInProcess(`
devices: [{ id: cpu0, kind: cpu, threads: 2, memory_gb: ${file === SMOLLM2_FILE ? 1 : 0.1}, swap_gb: ${swap} }]
models: [{ id: m, max_model_len: 128, variants: [{ precision: int4, path: ${JSON.stringify(file)} }] }]
`)
  open.push(box)
  await box.settled()
  const [device] = box.engine.devices
  const blockBytes = box.variant('m:int4').resident?.blockBytes ?? 0
  device?.arena.setLimit(Math.ceil((BLOCKS * blockBytes) / device.arena.slabBytes))
  return box
}

const prompt = (index: number): number[] =>
  Array.from({ length: 60 + index }, (_, i) => 1 + ((i * 7 + index * 31) % 90))

/** Six sequences at a time, more than fit; greedy and sampled. */
function askAll(box: InProcessEngine): Promise<Answer[]> {
  return Promise.all(
    Array.from({ length: 6 }, (_, index) =>
      box.ask('m:int4', prompt(index), {
        maxTokens: 30,
        sampling: neutralSampling({ seed: index, temperature: index % 2 }),
      }),
    ),
  )
}

function swapOf(box: InProcessEngine): SwapSpace {
  const swap = box.engine.devices[0]?.swap
  if (!swap) throw new Error('no swap memory')
  return swap
}

describe('swap memory', { timeout: 60_000 }, () => {
  it('gives the same texts with room for all, for some and for none', async () => {
    const none = await start(0)
    const expected = (await askAll(none)).map(({ tokens }) => tokens)
    expect(none.engine.devices[0]?.counters.preemptions).toBeGreaterThan(0)
    expect(none.engine.devices[0]?.swap).toBeUndefined()
    for (const [gigabytes, full] of [
      [0.01, false],
      [0.00002, true],
    ] as const) {
      const box = await start(gigabytes)
      const answers = await askAll(box)
      expect(answers.map(({ tokens }) => tokens)).toEqual(expected)
      const { counters, usedBytes } = swapOf(box)
      console.log(`swap_gb ${gigabytes}`, JSON.stringify(counters))
      expect(counters.full > 0).toBe(full)
      expect(counters.out + counters.recomputed + counters.full).toBeGreaterThan(0)
      expect(counters.in).toBeLessThanOrEqual(counters.out)
      expect(usedBytes).toBe(0)
      expect(box.ledger()).toContain(`swap  ${gigabytes * 1e9}`)
      for (const device of box.engine.devices) device.checkInvariants()
    }
  })

  it('gives back what a cancelled sequence and a lost session held', async () => {
    const box = await start(0.05, SMOLLM2_FILE)
    const sequences = Array.from({ length: 6 }, (_, index) => {
      const collector = new Collector()
      const submit = submitOf(900 + index, prompt(index), { variant: 'm:int4', maxTokens: 60 })
      return { sequence: box.engine.submit(submit, collector), collector }
    })
    const swapped = () => sequences.filter(({ sequence }) => sequence?.swapped !== undefined)
    while (swapped().length === 0) await new Promise((resolve) => setImmediate(resolve))
    const [first] = swapped()
    const before = swapOf(box).usedBytes
    const held = (first?.sequence?.swapped?.blocks.length ?? 0) * (box.variant('m:int4').resident?.blockBytes ?? 0)
    if (first?.sequence) first.sequence.holder?.end(first.sequence, FinishReason.CANCELLED, performance.now())
    expect(swapOf(box).usedBytes).toBe(before - held)
    for (const { sequence } of sequences) sequence?.holder?.end(sequence, FinishReason.CANCELLED, performance.now())
    expect(swapOf(box).usedBytes).toBe(0)
  })

  it('keeps what a rung had when it is unloaded in mid-answer, until it is back', async () => {
    // Of a size where a copy is quicker than computing for sure.
    const box = await start(0.05, SMOLLM2_FILE)
    const resident = box.variant('m:int4')
    const scheduler = resident.resident?.scheduler
    if (!scheduler) throw new Error('not loaded')
    const undisturbed = await box.ask(resident.name, prompt(1), { maxTokens: 30 })
    const running = box.ask(resident.name, prompt(1), { maxTokens: 30 })
    while (scheduler.running.every(({ outputLength }) => outputLength < 5))
      await new Promise((resolve) => setImmediate(resolve))
    // As at the end of a turn.
    for (const sequence of scheduler.withdraw(true)) box.engine.lobby.add(sequence)
    expect(swapOf(box).usedBytes).toBeGreaterThan(0)
    // It is loaded again at once for those who wait.
    box.residency.review()
    await box.residency.unload(resident.name).catch(() => undefined)
    expect((await running).tokens).toEqual(undisturbed.tokens)
    expect(resident.loads).toBe(2)
    expect(swapOf(box).counters).toMatchObject({ out: 1, in: 1 })
    expect(swapOf(box).usedBytes).toBe(0)
  })
})
