/**
 * What a rung is planned to take against what it takes, over random shapes. The estimates say it before anything is
 * loaded and without the backend at hand (a GPU's sizes in a build or on a machine without one), so they state the native
 * layouts a second time: this holds the two together.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { KvCacheDtype, NativeDevice, Precision } from '../../engine/native.js'
import { estimateWeightBytes, readModelCard } from '../../engine/registry/index.js'
import { estimateWorkspaceBytes, kvBlockBytes } from '../../engine/residency/estimate.js'
import { type Shape, writeRandomCheckpoint } from '../../engine/tools/random-checkpoint.js'
import { testDevices } from '../support/native-model.js'

const MIB = 2 ** 20
/** How far the planned workspace lies above what is taken: room for what is not counted in it, less the rounding to pages. */
const SPARE = { cpu: { least: 13.9 * MIB, most: 16 * MIB }, cuda: { least: 0, most: Infinity } }
/** The least that may be taken of planned weights. */
function leastWeights(kind: 'cpu' | 'cuda', stored: Precision, planned: number): number {
  // A driver maps whole pieces, and parts of two forms in one matrix are planned as floats.
  if (kind === 'cuda') return 0.4 * planned
  // Zero points that are all in the middle, as these are, are not kept: that may save a page.
  return stored === 'int8' ? 0.9 * planned - 2 * MIB : planned
}

const PRECISIONS = ['fp16', 'int8', 'int4'] as const

const shape: fc.Arbitrary<Shape> = fc
  .record({
    layers: fc.integer({ min: 1, max: 3 }),
    hidden: fc.integer({ min: 1, max: 12 }).map((n) => n * 32),
    ffn: fc.integer({ min: 1, max: 20 }).map((n) => n * 32),
    kvHeads: fc.integer({ min: 1, max: 4 }),
    group: fc.integer({ min: 1, max: 4 }),
    headDim: fc.constantFrom(8, 16, 24, 40, 64, 72, 80, 96, 128, 256),
    vocab: fc.integer({ min: 33, max: 200 }).map((n) => n * 8),
  })
  .map(({ group, ...sizes }) => Object.assign(sizes, { heads: group * sizes.kvHeads }))
  .filter(({ heads, headDim }) => (heads * headDim) % 32 === 0)

const load = fc.record({
  shape,
  stored: fc.constantFrom(...PRECISIONS),
  rung: fc.constantFrom(...PRECISIONS),
  blockSize: fc.constantFrom(16, 32, 64),
  maxBatchTokens: fc.constantFrom(1, 16, 200, 2048, 8192),
  maxSlots: fc.constantFrom(1, 4, 64, 300),
  kvCacheDtype: fc.constantFrom<KvCacheDtype>('fp16', 'fp8', 'int8'),
})
type Load = typeof load extends fc.Arbitrary<infer T> ? T : never

interface Sizes {
  weights: number
  workspace: number
  block: number
}

/** What was planned, and what was taken. */
async function sizesOf(
  device: NativeDevice,
  kind: 'cpu' | 'cuda',
  asked: Load,
): Promise<{ plan: Sizes; taken: Sizes }> {
  const { shape: wanted, stored, rung, blockSize, maxBatchTokens, maxSlots, kvCacheDtype } = asked
  const folder = mkdtempSync(join(tmpdir(), 'es-shape-'))
  try {
    writeRandomCheckpoint(folder, wanted, stored)
    const card = readModelCard(folder, () => {
      throw new Error('no GGUF')
    })
    const { spec, files, weights } = card
    const request = { spec, files, weights, precision: rung, maxSlots, maxBatchTokens, blockSize, kvCacheDtype }
    const model = await device.loadModel(request)
    const taken = { weights: model.weightBytes, workspace: model.workspaceBytes, block: model.blockBytes }
    await model.unload()
    const plan = {
      weights: estimateWeightBytes(card, rung, kind),
      workspace: estimateWorkspaceBytes(spec, { maxBatchTokens, maxSlots }, rung, kind),
      block: kvBlockBytes(spec, blockSize, kind, kvCacheDtype),
    }
    return { plan, taken }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

describe.each(testDevices())('on $name', ({ options, missing }) => {
  const { kind } = options
  it.skipIf(missing)('what a rung takes is what was planned', { timeout: 300_000 }, async () => {
    const device = loadAddon().openDevice({ ...options, kvArenaBytes: MIB })
    await fc.assert(
      fc.asyncProperty(load, async (asked) => {
        const { plan, taken } = await sizesOf(device, kind, asked)
        expect(taken.block).toBe(plan.block)
        expect(taken.weights).toBeLessThanOrEqual(plan.weights)
        expect(taken.weights).toBeGreaterThanOrEqual(leastWeights(kind, asked.stored, plan.weights))
        const spare = plan.workspace - taken.workspace
        expect(spare).toBeGreaterThanOrEqual(SPARE[kind].least)
        expect(spare).toBeLessThanOrEqual(SPARE[kind].most)
      }),
      { numRuns: 60 },
    )
    await device.close()
  })
})
