import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { NativeDevice, NativeModel } from '../../engine/native.js'
import {
  cpuDevice,
  generate,
  logSoftmax,
  mostLikely,
  readNpy,
  scoreNext,
  standardDeviation,
} from '../support/native-model.js'
import { stories260kRequest } from '../support/stories260k.js'

interface Case {
  n: number
  prompt_ids: number[]
  generated_ids: number[]
  /** Logit of the first minus that of the second at each step. */
  margins: number[]
}

/**
 * The reference is float32 and this rung holds weights and cache in binary16. Rounding this model's weights alone
 * moves the logits of the first prompt by 0.020 in float64 arithmetic, which is also what is measured here.
 */
const FP16_TOLERANCE = 2e-2
const NEAR_TIE = 0.05

const expected = JSON.parse(
  readFileSync(new URL('../fixtures/stories260k/expected.json', import.meta.url), 'utf8'),
) as { cases: Case[] }

describe('stories260K at the fp16 rung', () => {
  let device: NativeDevice
  let model: NativeModel
  beforeAll(async () => {
    device = loadAddon().openDevice(cpuDevice)
    model = await device.loadModel(stories260kRequest('fp16'))
  })
  afterAll(async () => {
    await model.unload()
    await device.close()
  })

  test.each(expected.cases)('decoding prompt $n greedily follows the reference to a near tie', async (row) => {
    const ids = await generate(model, row.prompt_ids, row.generated_ids.length)
    const divergedAt = row.generated_ids.findIndex((id, i) => ids[i] !== id)
    const margin = divergedAt < 0 ? 0 : row.margins[divergedAt]
    expect(margin).toBeLessThan(NEAR_TIE)
  })

  test.each(expected.cases)("every next token after prompt $n is the reference's, near ties apart", async (row) => {
    const tokens = [...row.prompt_ids, ...row.generated_ids]
    const first = row.prompt_ids.length - 1
    const best = await mostLikely(model, tokens, first, row.generated_ids.length)
    const wrong = row.generated_ids.filter((id, i) => best[i] !== id && (row.margins[i] ?? 0) >= NEAR_TIE)
    expect(wrong).toEqual([])
  })

  test.each(expected.cases)("the distribution after prompt $n is the reference's", async ({ n, prompt_ids }) => {
    const vocab = 512
    const logits = readNpy(`stories260k/logits_${n}.npy`).slice(-vocab)
    const reference = logSoftmax(logits)
    const measured = await scoreNext(
      model,
      prompt_ids,
      Array.from({ length: vocab }, (_, id) => id),
    )
    const worst = Math.max(...measured.map((logprob, id) => Math.abs(logprob - (reference[id] ?? NaN))))
    expect(worst).toBeLessThan(FP16_TOLERANCE * standardDeviation(logits))
  })
})
