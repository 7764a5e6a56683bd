import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { NativeDevice, Precision } from '../../engine/native.js'
import { readModelCard } from '../../engine/registry/index.js'
import { BLOCK_SIZE, cpuDevice, logSoftmax, readNpy, scoreNext, standardDeviation } from '../support/native-model.js'

/**
 * Largest difference of a log probability from the float32 forward over the dequantized file, as a share of the
 * logits' standard deviation. int8 and int4 round what the file has in more bits, which these random weights show at its
 * worst, so int4 is compared for 4-bit files only.
 */
const TYPES = 'f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs'.split(' ')
const TOLERANCES: [type: string, precision: Precision, share: number][] = [
  ...TYPES.flatMap((type): [string, Precision, number][] => [
    [type, 'fp16', 0.02],
    [type, 'int8', 0.1],
  ]),
  ['q4_0', 'int4', 0.1],
  ['q4_1', 'int4', 0.1],
  ['q4_k', 'int4', 0.1],
]

describe('a tiny llama with a separate head', () => {
  let device: NativeDevice
  beforeAll(() => {
    device = loadAddon().openDevice({ ...cpuDevice, kvArenaBytes: 64 << 20 })
  })
  afterAll(() => device.close())

  test.each(TOLERANCES)("%s at %s gives the reference's distributions", async (type, precision, share) => {
    const folder = new URL(`../fixtures/gguf/${type}/`, import.meta.url).pathname
    const card = readModelCard(`${folder}model.gguf`, (path) => loadAddon().readGguf(path))
    const { spec, files } = card
    const limits = { maxSlots: 1, maxBatchTokens: 256, blockSize: BLOCK_SIZE }
    const model = await device.loadModel({ spec, files, weights: card.weights, precision, ...limits })
    const prompts: number[][] = JSON.parse(readFileSync(`${folder}prompts.json`, 'utf8'))
    const logits = readNpy(`gguf/${type}/last_logits.npy`)
    const vocab = spec.vocabSize
    const shares: number[] = []
    for (const [i, prompt] of prompts.entries()) {
      const expected = logits.slice(i * vocab, (i + 1) * vocab)
      const reference = logSoftmax(expected)
      const measured = await scoreNext(
        model,
        prompt,
        Array.from({ length: vocab }, (_, id) => id),
      )
      const worst = Math.max(...measured.map((logprob, id) => Math.abs(logprob - (reference[id] ?? NaN))))
      shares.push(worst / standardDeviation(expected))
    }
    await model.unload()
    expect(Math.max(...shares)).toBeLessThan(share)
  })
})
