/** Golden checkpoints through the registry and every backend against the reference's logits. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { NativeDevice, Precision } from '../../engine/native.js'
import { estimateWeightBytes, readModelCard } from '../../engine/registry/index.js'
import { estimateWorkspaceBytes, kvBlockBytes } from '../../engine/residency/estimate.js'
import { repackAsAwq8 } from '../support/awq8.js'
import { GOLDEN, goldenCard, goldenRequest, logitErrors, logitTolerance } from '../support/golden.js'
import { cpuDevice, testDevices } from '../support/native-model.js'

let device: NativeDevice
beforeAll(() => {
  device = loadAddon().openDevice({ ...cpuDevice, kvArenaBytes: 64 << 20 })
})
afterAll(() => device.close())

const RUNGS = GOLDEN.flatMap((name): [string, Precision][] => {
  const { precision } = goldenCard(name)
  return precision === 'fp16'
    ? [[name, 'fp16']]
    : [
        [name, 'fp16'],
        [name, precision],
      ]
})

test.each(RUNGS)("%s at %s gives the reference's logits", async (name, precision) => {
  const card = goldenCard(name)
  const { spec } = card
  const model = await device.loadModel({ ...goldenRequest(name), precision })
  const { weightBytes } = model
  const errors = await logitErrors(model, name, spec)
  await model.unload()
  expect(Math.max(...errors)).toBeLessThan(logitTolerance(name, precision))
  expect(weightBytes / estimateWeightBytes(card, precision)).toBeGreaterThan(0.95)
  expect(weightBytes).toBeLessThanOrEqual(estimateWeightBytes(card, precision))
})

test("8-bit AWQ, as GPTQModel packs it, gives the reference's logits of the same codes", async () => {
  const name = 'gptq/w8_g64_asym_v2_bias'
  const folder = mkdtempSync(join(tmpdir(), 'edgeshift-awq8-'))
  try {
    repackAsAwq8(name, folder)
    const card = readModelCard(folder, () => {
      throw new Error('no GGUF')
    })
    expect([card.precision, card.weights.some(({ storage }) => storage.method === 'awq')]).toEqual(['int8', true])
    const { spec, files, weights } = card
    for (const precision of ['fp16', 'int8', 'int4'] as const) {
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      const model = await device.loadModel({ ...goldenRequest(name), spec, files, weights, precision })
      // oxlint-disable-next-line no-await-in-loop
      const errors = await logitErrors(model, name, spec)
      expect(model.weightBytes).toBeLessThanOrEqual(estimateWeightBytes(card, precision))
      // oxlint-disable-next-line no-await-in-loop
      await model.unload()
      // At int4 the codes are rounded: it has to load, not to be as good.
      expect(Math.max(...errors)).toBeLessThan(precision === 'int4' ? 1 : logitTolerance(name, precision))
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
})

const gpu = testDevices().find(({ name }) => name === 'a GPU')

/** Activations are fp16 there at every rung. */
const gpuShare = (name: string, precision: Precision): number => Math.max(0.03, logitTolerance(name, precision))

describe.skipIf(gpu === undefined || gpu.missing)('on a GPU (skipped where there is none)', () => {
  let onGpu: NativeDevice
  beforeAll(() => {
    if (gpu) onGpu = loadAddon().openDevice({ ...gpu.options, kvArenaBytes: 64 << 20 })
  })
  afterAll(() => onGpu.close())

  test.each(RUNGS)("%s at %s gives the reference's logits", async (name, precision) => {
    const model = await onGpu.loadModel({ ...goldenRequest(name), precision })
    const { weightBytes, workspaceBytes, blockBytes } = model
    const errors = await logitErrors(model, name, goldenCard(name).spec)
    await model.unload()
    expect(Math.max(...errors)).toBeLessThan(gpuShare(name, precision))
    const card = goldenCard(name)
    const { maxBatchTokens, maxSlots, blockSize } = goldenRequest(name)
    const estimate = estimateWeightBytes(card, precision, 'cuda')
    // Whether act-order's parts share their order, and can be one matrix, is not known before.
    const ordered = card.weights.some(({ tensors }) => tensors.groupIndex !== undefined)
    expect(weightBytes / estimate).toBeGreaterThan(ordered ? 0.4 : 0.9)
    expect(weightBytes).toBeLessThanOrEqual(estimate)
    expect(workspaceBytes).toBeLessThanOrEqual(
      estimateWorkspaceBytes(card.spec, { maxBatchTokens, maxSlots }, precision, 'cuda'),
    )
    expect(blockBytes).toBe(kvBlockBytes(card.spec, blockSize, 'cuda'))
  })
})
