import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { NativeDevice, NativeModel, Precision, StepResult } from '../../engine/native.js'
import {
  generate,
  generateTogether,
  greedyState,
  logSoftmax,
  makeBatch,
  readNpy,
  scoreNext,
  smollm2Request,
  testDevices,
} from '../support/native-model.js'

interface GreedyRow {
  n: number
  prompt_ids: number[]
  generated_ids: number[]
  margins: number[]
}

const greedy = readFileSync(new URL('../fixtures/smollm2/greedy.jsonl', import.meta.url), 'utf8')
  .split('\n')
  .filter((line) => line !== '')
  .map((line) => JSON.parse(line) as GreedyRow)
const row = (n: number): GreedyRow => greedy.find((entry) => entry.n === n) as GreedyRow

/**
 * Largest difference of a log probability from the float32 reference, and the margin below which a greedy choice may
 * differ. int8 and int4 keep the file's own 4-bit and 8-bit codes; their activations are rounded to 15 bits.
 */
const TOLERANCES: Record<Precision, { logprob: number; nearTie: number }> = {
  fp16: { logprob: 0.03, nearTie: 0.05 },
  int8: { logprob: 0.03, nearTie: 0.05 },
  int4: { logprob: 0.03, nearTie: 0.05 },
}

const RUNGS = testDevices().flatMap((on) => (['fp16', 'int8', 'int4'] as const).map((precision) => ({ on, precision })))

/** Where there is no GPU its suites are left out; the CPU's are their twins. */
const PRESENT = RUNGS.filter(({ on }) => !on.missing)
test.skipIf(PRESENT.length < RUNGS.length)('a GPU is among the devices (skipped where there is none)', () => {
  expect(PRESENT.map(({ on }) => on.options.kind)).toContain('cuda')
})

describe.each(PRESENT)('SmolLM2 at the $precision rung on $on.name', ({ on, precision }) => {
  const { logprob, nearTie } = TOLERANCES[precision]
  let device: NativeDevice
  let model: NativeModel
  beforeAll(async () => {
    device = loadAddon().openDevice(on.options)
    model = await device.loadModel(smollm2Request(precision))
  })
  afterAll(async () => {
    await model.unload()
    await device.close()
  })

  test.each([
    [0, 'logits_00_raw_short'],
    [14, 'logits_14_chat_short'],
    [22, 'logits_22_chat_multi'],
    [10, 'logits_10_raw_400'],
  ])("the distribution after prompt %i is the reference's", async (n, file) => {
    const logits = readNpy(`smollm2/${file}.npy`)
    const reference = logSoftmax(logits)
    const likely = [...logits.keys()].toSorted((a, b) => (logits[b] ?? 0) - (logits[a] ?? 0)).slice(0, 30)
    const targets = [...likely, ...Array.from({ length: 66 }, (_, i) => i * 744)]
    const measured = await scoreNext(model, row(n).prompt_ids, targets)
    const worst = Math.max(...targets.map((id, i) => Math.abs((measured[i] ?? NaN) - (reference[id] ?? NaN))))
    expect(worst).toBeLessThan(logprob)
  })

  test('greedy decoding of prompts that share their steps follows the reference to near ties', async () => {
    const rows = [0, 1, 4, 14, 16, 18, 21, 22].map(row)
    const texts = await generateTogether(
      model,
      rows.map(({ prompt_ids }) => prompt_ids),
      64,
    )
    const wrong = rows.filter(({ generated_ids, margins }, i) => {
      const divergedAt = generated_ids.findIndex((id, at) => texts[i]?.[at] !== id)
      return divergedAt >= 0 && (margins[divergedAt] ?? 0) >= nearTie
    })
    expect(wrong.map(({ n }) => n)).toEqual([])
  })

  test('a sequence gets the same tokens and log probabilities alone and among others', async () => {
    const prompt = row(14).prompt_ids
    const one = { slot: 0, first: 0, tokens: prompt, rows: [{ at: prompt.length - 1, top: 20 }] }
    model.setSlot(0, greedyState(prompt))
    const alone = await model.step(makeBatch(model, [one]))
    const others = [0, 1, 22].map((n, i) => ({
      slot: i + 1,
      first: 0,
      tokens: row(n).prompt_ids,
      rows: [{ at: 2, target: 7, top: 20 }],
    }))
    for (const { slot, tokens } of others) model.setSlot(slot, greedyState(tokens))
    model.setSlot(0, greedyState(prompt))
    const together = await model.step(makeBatch(model, [...others, one]))
    const last = others.length
    expect(together.tokens[last]).toBe(alone.tokens[0])
    // Products of other widths add up in another order on a GPU.
    const most = on.options.kind === 'cuda' ? 0.02 : 0
    const differences = [
      (together.logprobs[last] ?? Number.NaN) - (alone.logprobs[0] ?? 0),
      ...(on.options.kind === 'cuda'
        ? []
        : alone.topLogprobs.map((alternative, i) => (together.topLogprobs[20 * last + i] ?? Number.NaN) - alternative)),
    ]
    expect(Math.max(...differences.map(Math.abs))).toBeLessThanOrEqual(most)
    const top = (result: StepResult, from: number): number[] => [...result.topTokens.slice(from, from + 20)]
    const sameSet = (ids: number[]): number[] => (on.options.kind === 'cuda' ? ids.slice(0, 1) : ids)
    expect(sameSet(top(together, 20 * last))).toEqual(sameSet(top(alone, 0)))
  })

  test('a prompt gives the same tokens in chunks as whole', async () => {
    const prompt = row(10).prompt_ids
    expect(await generate(model, prompt, 8, { slot: 1, chunk: 37 })).toEqual(await generate(model, prompt, 8))
  })
})
