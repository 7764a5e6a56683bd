import { execFile } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, NativeDevice, NativeModel, StepBatch, WeightSource } from '../../engine/native.js'
import { goldenRequest } from '../support/golden.js'
import { cpuDevice, generate, greedyState, makeBatch, smollm2Request } from '../support/native-model.js'
import { stories260kRequest } from '../support/stories260k.js'

const addon = loadAddon()
setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void
const open = (change: object) => () => addon.openDevice({ ...cpuDevice, ...change })
const descriptors = (): number => readdirSync('/proc/self/fd').length
const mappings = (): number => readFileSync('/proc/self/maps', 'utf8').split('\n').length

describe('a device', () => {
  test('refuses options that are wrong', () => {
    expect(open({ kind: 'tpu' })).toThrow('tpu')
    expect(open({ threads: 0 })).toThrow('threads')
    expect(open({ kvArenaBytes: 2 ** 49 })).toThrow(expect.objectContaining({ code: 'out_of_memory' }))
    expect(open({ kvArenaBytes: -1 })).toThrow(expect.objectContaining({ code: 'invalid_argument' }))
    expect(() => addon.usedBytes(1023)).toThrow(expect.objectContaining({ code: 'unsupported' }))
  })

  test('that is not there is refused with the reason: no build, no driver, no such GPU', () => {
    const reason = /this build has no CUDA backend|there is no NVIDIA driver|there is no CUDA device 99, only \d/
    const refusal = { code: 'unsupported', message: expect.stringMatching(reason) }
    expect(open({ kind: 'cuda', index: 99, threads: 1 })).toThrow(expect.objectContaining(refusal))
  })

  test('closes only without models, and then refuses calls', async () => {
    const device = addon.openDevice(cpuDevice)
    const model = await device.loadModel(stories260kRequest('int8'))
    await expect(device.close()).rejects.toMatchObject({ code: 'invalid_argument', message: /1 are loaded/ })
    await model.unload()
    await expect(model.unload()).rejects.toMatchObject({ code: 'invalid_argument' })
    await expect(model.step({} as StepBatch)).rejects.toMatchObject({ code: 'invalid_argument' })
    expect(() => model.setSlot(0, greedyState([1]))).toThrow('unloaded')
    await device.close()
    await expect(device.close()).rejects.toMatchObject({ message: /closed/ })
    await expect(device.loadModel(stories260kRequest('int8'))).rejects.toMatchObject({ message: /closed/ })
  })

  test('runs what was queued before an unload', async () => {
    const device = addon.openDevice(cpuDevice)
    const model = await device.loadModel(stories260kRequest('int4'))
    const text = generate(model, [1], 50)
    const unloaded = model.unload()
    expect(await text).toHaveLength(50)
    await unloaded
    await device.close()
  })

  const changed = (weight: WeightSource, change: object): WeightSource => ({
    ...weight,
    tensors: { values: { file: 0, offset: 0, bytes: 0, type: '', shape: [], ...weight.tensors.values, ...change } },
  })

  test('refuses a load whole: wrong weights, missing files, bytes outside the file', async () => {
    const device = addon.openDevice(cpuDevice)
    const request = stories260kRequest('fp16')
    const load = (change: Partial<LoadRequest>) => device.loadModel({ ...request, ...change })
    const withFirst = (change: object) => ({
      weights: request.weights.map((weight, i) => (i === 0 ? changed(weight, change) : weight)),
    })
    await expect(load({ files: ['/nonexistent'] })).rejects.toMatchObject({ code: 'io_error' })
    await expect(load({ weights: request.weights.slice(1) })).rejects.toMatchObject({ message: /embed is missing/ })
    await expect(load(withFirst({ offset: 2 ** 40 }))).rejects.toMatchObject({ code: 'invalid_file' })
    await expect(load(withFirst({ offset: 2 ** 53 - 1 }))).rejects.toMatchObject({ code: 'invalid_file' })
    await expect(load(withFirst({ file: 1 }))).rejects.toMatchObject({ code: 'invalid_argument' })
    await expect(load(withFirst({ type: 'q9_k' }))).rejects.toMatchObject({ code: 'unsupported' })
    await expect(load(withFirst({ shape: [512, -64] }))).rejects.toMatchObject({ code: 'invalid_argument' })
    await expect(load({ blockSize: 8 })).rejects.toMatchObject({ code: 'unsupported' })
    await expect(load({ precision: 'int2' as 'int4' })).rejects.toMatchObject({ code: 'invalid_argument' })
    // Nothing counts as loaded.
    await device.close()
  })

  test('gives back memory and descriptors over 100 loads and unloads', async () => {
    const device = addon.openDevice(cpuDevice)
    const rungs = ['fp16', 'int8', 'int4'] as const
    const large = rungs.map((precision) => smollm2Request(precision, 64))
    const small = [
      ...rungs.map((precision) => stories260kRequest(precision)),
      ...[
        'gptq/w4_dynamic_mixed',
        'gptq/w4_g128_sym_actorder',
        'gptq/w3_g32_asym_v2',
        'awq/w4_g64',
        'awq/w4_g32_gemv_fast',
        'compressed-tensors/fp8_static',
        'fp8/block128',
      ].map((name) => goldenRequest(name)),
    ]
    const cycle = async (request: LoadRequest): Promise<void> => {
      const model = await device.loadModel(request)
      await generate(model, [1], 3)
      await model.unload()
    }
    for (const request of [...large, ...small]) await cycle(request)
    collectGarbage()
    const baseline = { rss: process.memoryUsage().rss, descriptors: descriptors(), mappings: mappings() }
    for (let i = 0; i < 10; i++) for (const request of small) await cycle(request)
    for (const request of large) await cycle(request)
    collectGarbage()
    expect(descriptors()).toBe(baseline.descriptors)
    // The allocator's own come and go.
    expect(mappings()).toBeLessThan(baseline.mappings + 8)
    // Less than a tenth of one copy of the smallest rung's weights.
    expect(process.memoryUsage().rss - baseline.rss).toBeLessThan(8 << 20)
    await device.close()
  }, 60_000)

  test('frees what a terminated worker thread left open, in the middle of steps', async () => {
    const script = `
      const { parentPort, workerData } = require('node:worker_threads')
      const addon = require(workerData.addon)
      const device = addon.openDevice(workerData.device)
      device.loadModel(workerData.request).then((model) => {
        model.setSlot(0, workerData.state)
        for (let i = 0; i < 1000; i++) model.step(workerData.batch).catch(() => {})
        parentPort.postMessage('busy')
      })`
    const device = addon.openDevice(cpuDevice)
    const request = stories260kRequest('int8')
    const model = await device.loadModel(request)
    const batch = makeBatch(model, [{ slot: 0, first: 0, tokens: [1, 2, 3], rows: [{ at: 2 }] }])
    const path = new URL('../../build/native/edgeshift.node', import.meta.url).pathname
    const before = descriptors()
    for (let i = 0; i < 3; i++) {
      const workerData = { addon: path, device: cpuDevice, request, state: greedyState([1]), batch }
      const worker = new Worker(script, { eval: true, workerData })
      await new Promise((resolve) => worker.once('message', resolve))
      await worker.terminate()
    }
    expect(descriptors()).toBeLessThanOrEqual(before)
    expect(await generate(model, [1], 5)).toHaveLength(5)
    await model.unload()
    await device.close()
  })
})

test.skipIf(process.platform !== 'linux')(
  'a device for which threads are lacking leaves nothing behind',
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'es-threads-'))
    try {
      const source = new URL('../support/no-thread.cpp', import.meta.url).pathname
      const script = new URL('../support/open-without-threads.ts', import.meta.url).pathname
      const library = join(folder, 'no-thread.so')
      const run = promisify(execFile)
      await run(process.env.CXX ?? 'c++', ['-shared', '-fPIC', '-o', library, source, '-ldl'])
      const env = { ...process.env, LD_PRELOAD: library }
      const { stdout } = await run(process.execPath, ['--import', 'tsx', script], { env })
      expect(stdout.split('\n')).toEqual([...Array.from({ length: 5 }, () => 'out_of_memory'), 'opened', ''])
    } finally {
      rmSync(folder, { recursive: true })
    }
  },
  60_000,
)

describe('a step', () => {
  let device: NativeDevice
  let model: NativeModel
  beforeEach(async () => {
    device = addon.openDevice(cpuDevice)
    model = await device.loadModel(stories260kRequest('int8'))
    model.setSlot(0, greedyState([1, 5]))
    model.setSlot(1, greedyState([1]))
  })
  afterEach(async () => {
    await model.unload()
    await device.close()
  })

  const set = (change: object) => () => model.setSlot(0, greedyState([1], change))
  const good = (): StepBatch =>
    makeBatch(model, [
      { slot: 0, first: 0, tokens: [1, 5], rows: [{ at: 1 }] },
      { slot: 1, first: 0, tokens: [1], rows: [{ at: 0, target: 7, top: 3 }] },
    ])

  test.each<[name: string, change: (batch: StepBatch) => unknown]>([
    ['a token past the vocabulary', (batch) => (batch.tokens[0] = 512)],
    ['a negative token', (batch) => (batch.tokens[0] = -2)],
    ['a block past the arena', (batch) => (batch.blocks[0] = 0xffffffff)],
    ['a slot past the last', (batch) => (batch.slots[0] = 8)],
    ['a negative slot', (batch) => (batch.slots[0] = -1)],
    ['a slot twice', (batch) => (batch.slots[0] = 1)],
    ['a slot that was never set', (batch) => (batch.slots[0] = 2)],
    ['a position past the blocks', (batch) => (batch.firstPositions[0] = 1000)],
    ['starts that fall', (batch) => (batch.seqStarts[1] = 9)],
    ['block starts that fall', (batch) => (batch.blockStarts[1] = -9)],
    ['a row past the tokens', (batch) => (batch.rowTokens[0] = 3)],
    ['a row past the sequences', (batch) => (batch.rowSeqs[0] = 2)],
    ['a target past the vocabulary', (batch) => (batch.rowTargets[1] = 512)],
    ['too many alternatives', (batch) => (batch.rowTop[1] = 21)],
    ['arrays of different lengths', (batch) => (batch.rowTop = new Int32Array(1))],
    ['an array of the wrong kind', (batch) => (batch.tokens = new Uint32Array(3) as unknown as Int32Array)],
    ['no tokens', (batch) => (batch.tokens = new Int32Array())],
  ])('with %s is refused and the next one works', async (_, change) => {
    const batch = good()
    change(batch)
    await expect(model.step(batch)).rejects.toMatchObject({ code: 'invalid_argument' })
    const result = await model.step(good())
    expect(result.tokens).toHaveLength(2)
    expect(result.tokens[1]).toBe(7)
    expect(result.topTokens.slice(0, 3)).toEqual(Int32Array.of(-1, -1, -1))
    expect(result.topLogprobs.slice(3)).toEqual(Float32Array.from(result.topLogprobs.slice(3)).toSorted().toReversed())
  })

  test('may have its arrays reused at once', async () => {
    const batch = good()
    const expected = await model.step(good())
    model.setSlot(0, greedyState([1, 5]))
    const promise = model.step(batch)
    for (const array of Object.values(batch) as Int32Array[]) array.fill(0x7fffffff)
    expect((await promise).tokens).toEqual(expected.tokens)
  })

  test('with a bad slot state is refused by setSlot', () => {
    expect(set({ tokens: Int32Array.of(512), promptLength: 0 })).toThrow('vocabulary')
    expect(set({ promptLength: 2 })).toThrow('promptLength')
    expect(set({ temperature: NaN })).toThrow('temperature')
    expect(set({ seed: 2 ** 53 })).toThrow('seed')
    expect(set({ biasTokens: Int32Array.of(1) })).toThrow('length')
    expect(() => model.setSlot(8, greedyState([1]))).toThrow('slot')
  })

  test('draws depend on the seed and the position alone, not on the rest of the batch', async () => {
    const state = { temperature: 1, seed: 42 }
    const alone = await generate(model, [1, 5, 9], 20, { slot: 2, state })
    const [again, ...others] = await Promise.all([
      generate(model, [1, 5, 9], 20, { slot: 3, state, chunk: 2 }),
      generate(model, [1, 5, 9], 20, { slot: 4, state: { temperature: 1, seed: 43 } }),
    ])
    expect(again).toEqual(alone)
    expect(others[0]).not.toEqual(alone)
  })
})
