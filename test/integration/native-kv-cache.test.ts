import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { KvCacheDtype, NativeDevice } from '../../engine/native.js'
import { kvBlockBytes } from '../../engine/residency/estimate.js'
import { BLOCK_SIZE, greedyState, makeBatch, smollm2Request, testDevices } from '../support/native-model.js'

/** What prompts of the fixture continue with, of four lengths. */
const texts = readFileSync(new URL('../fixtures/smollm2/greedy.jsonl', import.meta.url), 'utf8')
  .split('\n')
  .filter((line) => line !== '')
  .map((line) => JSON.parse(line) as { n: number; prompt_ids: number[]; generated_ids: number[] })
  .filter(({ n }) => [0, 10, 14, 22].includes(n))
  .map(({ prompt_ids, generated_ids }) => prompt_ids.concat(generated_ids))

/** Tokens at the end of each text that are scored by steps of their own. */
const SINGLE = 8

/** Log probability of every token of the texts after those before it: in two chunks, then token by token. */
async function scores(
  device: NativeDevice,
  kvCacheDtype: KvCacheDtype,
): Promise<{ logprobs: number[]; block: number }> {
  const model = await device.loadModel({ ...smollm2Request('int4'), kvCacheDtype })
  const logprobs: number[] = []
  for (const tokens of texts) {
    model.setSlot(0, greedyState(tokens))
    const end = tokens.length - SINGLE
    const cuts = [0, Math.floor(end / 2), ...Array.from({ length: SINGLE }, (_, i) => end + i)]
    const steps = cuts.map((first, i) => {
      const last = cuts[i + 1] ?? tokens.length
      const rows = tokens.slice(first + 1, last + 1).map((target, at) => ({ at, target, top: 0 }))
      return model.step(makeBatch(model, [{ slot: 0, first, tokens: tokens.slice(first, last), rows }]))
    })
    // oxlint-disable-next-line no-await-in-loop -- all texts are in one slot
    for (const { logprobs: values } of await Promise.all(steps)) logprobs.push(...values)
  }
  const block = model.blockBytes
  await model.unload()
  return { logprobs, block }
}

const PRESENT = testDevices().filter(({ missing }) => !missing)
test.skipIf(PRESENT.length < testDevices().length)('a GPU is among the devices (skipped where there is none)', () => {
  expect(PRESENT.map(({ options }) => options.kind)).toContain('cuda')
})

describe.each(PRESENT)('SmolLM2 with a coded KV cache on $name', ({ options }) => {
  let device: NativeDevice
  let exact: { logprobs: number[]; block: number }
  beforeAll(async () => {
    device = loadAddon().openDevice(options)
    exact = await scores(device, 'fp16')
  }, 60_000)
  afterAll(() => device.close())

  // Differences of the log probability of a text's token from the fp16 cache's: their mean, their root mean square and
  // the largest of some 800. On the CPU fp8 has -0.0001, 0.136 and 1.37, int8 -0.002, 0.044 and 0.28.
  test.each([
    { dtype: 'fp8', mean: 0.02, rms: 0.2, worst: 2 },
    { dtype: 'int8', mean: 0.01, rms: 0.07, worst: 0.6 },
  ] as const)(
    '$dtype keeps the log probabilities of texts in little more than half the memory',
    async (allowed) => {
      const { logprobs, block } = await scores(device, allowed.dtype)
      const differences = logprobs.map((value, i) => value - (exact.logprobs[i] ?? Number.NaN))
      const mean = differences.reduce((sum, d) => sum + d, 0) / differences.length
      const rms = Math.sqrt(differences.reduce((sum, d) => sum + d * d, 0) / differences.length)
      const worst = Math.max(...differences.map(Math.abs))
      console.log(
        `${allowed.dtype}: ${differences.length} tokens, mean ${mean.toFixed(5)}, rms ${rms.toFixed(4)}, worst ${worst.toFixed(3)}`,
      )
      expect(Math.abs(mean)).toBeLessThan(allowed.mean)
      expect(rms).toBeLessThan(allowed.rms)
      expect(worst).toBeLessThan(allowed.worst)
      expect(block / exact.block).toBeCloseTo((64 + 2) / 128, 3)
      const { spec } = smollm2Request('int4')
      expect(block).toBe(kvBlockBytes(spec, BLOCK_SIZE, options.kind, allowed.dtype))
    },
    60_000,
  )
})
