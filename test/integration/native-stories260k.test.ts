import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { NativeDevice, NativeModel } from '../../engine/native.js'
import { cpuDevice, generate, logSoftmax, readNpy, scoreNext } from '../support/native-model.js'
import { stories260kRequest } from '../support/stories260k.js'

interface Case {
  n: number
  prompt_ids: number[]
  generated_ids: number[]
}

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

  test.each(expected.cases)('greedy ids of prompt $n are the reference\'s', async ({ prompt_ids, generated_ids }) => {
    expect(await generate(model, prompt_ids, generated_ids.length)).toEqual(generated_ids)
  })

  test.each(expected.cases)('the distribution after prompt $n is the reference\'s', async ({ n, prompt_ids }) => {
    const vocab = 512
    const reference = logSoftmax(readNpy(`stories260k/logits_${n}.npy`).slice(-vocab))
    const measured = await scoreNext(model, prompt_ids, Array.from({ length: vocab }, (_, id) => id))
    const worst = Math.max(...measured.map((logprob, id) => Math.abs(logprob - (reference[id] ?? NaN))))
    expect(worst).toBeLessThan(1e-3)
  })
})
