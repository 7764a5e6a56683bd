import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, NativeDevice, NativeModel, Precision, SlotState, StepResult } from '../../engine/native.js'
import { cpuDevice, generate, greedyState, makeBatch, smollm2Request, testDevices } from '../support/native-model.js'
import { stories260kRequest } from '../support/stories260k.js'

const PROMPT = [1, 5, 9]
const INVALID = { code: 'invalid_argument' }

/** The smallest model that the device has kernels for. */
const requestOn = (kind: 'cpu' | 'cuda', precision: Precision): LoadRequest =>
  kind === 'cuda' ? smollm2Request(precision) : stories260kRequest(precision)

function together(...masks: Uint32Array[]): Uint32Array {
  return Uint32Array.from(masks.flatMap((mask) => Array.from(mask)))
}

describe.each(testDevices())('masks that follow a step on $name', ({ options, missing }) => {
  const words = Math.ceil(requestOn(options.kind, 'int8').spec.vocabSize / 32)
  let device: NativeDevice
  let model: NativeModel

  const everything = (): Uint32Array => new Uint32Array(words).fill(0xffffffff)

  /** A mask of these tokens alone. */
  function only(...tokens: number[]): Uint32Array {
    const mask = new Uint32Array(words)
    for (const token of tokens) mask[token >>> 5] = (mask[token >>> 5] ?? 0) | (1 << (token % 32))
    return mask
  }

  beforeEach(async (context) => {
    context.skip(missing, 'there is no GPU')
    device = loadAddon().openDevice(options)
    model = await device.loadModel(requestOn(options.kind, 'int8'))
  })
  afterEach(async () => {
    if (missing) return
    await model.unload()
    await device.close()
  })

  const start = (state: Partial<SlotState> = {}): void => model.setSlot(0, greedyState(PROMPT, state))
  const prefill = (): Promise<StepResult> =>
    model.step(makeBatch(model, [{ slot: 0, first: 0, tokens: PROMPT, rows: [{ at: 2, mask: 0 }] }]))
  const decode = (i: number): Promise<StepResult> =>
    model.step(makeBatch(model, [{ slot: 0, first: 2 + i, tokens: [-1], rows: [{ at: 0, mask: 0 }] }]))
  const tokens = async (steps: Promise<StepResult>[]): Promise<number[]> =>
    (await Promise.all(steps)).flatMap((result) => Array.from(result.tokens))

  test.each([{ temperature: 0 }, { temperature: 0.9, seed: 3 }])(
    'change nothing where they allow all: %o',
    async (state) => {
      const expected = await generate(model, PROMPT, 10, { state })
      start(state)
      const steps: Promise<StepResult>[] = []
      for (let i = 0; i < 10; i++) {
        steps.push(i === 0 ? prefill() : decode(i))
        model.giveMasks(everything())
      }
      expect(await tokens(steps)).toEqual(expected)
    },
  )

  test('belong to the steps in their order, and the tokens are continued from', async () => {
    start()
    const steps = [prefill()]
    const first = only(100)
    model.giveMasks(first)
    // They were copied.
    first.fill(0)
    steps.push(decode(1))
    model.giveMasks(only(511))
    steps.push(model.step(makeBatch(model, [{ slot: 0, first: 4, tokens: [-1], rows: [{ at: 0, top: 0 }] }])))
    expect((await tokens(steps)).slice(0, 2)).toEqual([100, 511])
    const given = [...PROMPT, 100, 511]
    start({ tokens: Int32Array.from(given) })
    const again = model.step(makeBatch(model, [{ slot: 0, first: 0, tokens: given, rows: [{ at: 4, top: 0 }] }]))
    expect((await tokens([again]))[0]).toBe((await tokens(steps))[2])
  })

  test('are of the rows that name them', async () => {
    for (const slot of [0, 1, 2]) model.setSlot(slot, greedyState(PROMPT))
    const free = await model.step(makeBatch(model, [{ slot: 2, first: 0, tokens: PROMPT, rows: [{ at: 2 }] }]))
    model.setSlot(2, greedyState(PROMPT))
    const step = model.step(
      makeBatch(model, [
        { slot: 0, first: 0, tokens: PROMPT, rows: [{ at: 2, mask: 1, top: 1 }] },
        {
          slot: 1,
          first: 0,
          tokens: PROMPT,
          rows: [
            { at: 1, target: 9, top: 0 },
            { at: 2, mask: 0 },
          ],
        },
        { slot: 2, first: 0, tokens: PROMPT, rows: [{ at: 2 }] },
      ]),
    )
    model.giveMasks(together(only(7), only(300)))
    const result = await step
    expect([...result.tokens]).toEqual([300, 9, 7, free.tokens[0]])
    // Log probabilities are of what the model says, whatever is allowed.
    expect(result.topTokens[0]).toBe(free.tokens[0])
    expect(result.ranks[0]).toBeGreaterThan(1)
  })

  test('of a wrong length fail their step, and the next one works', async () => {
    start()
    const expected = await generate(model, PROMPT, 1)
    for (const masks of [new Uint32Array(), everything().subarray(1), together(everything(), everything())]) {
      start()
      const failed = prefill()
      model.giveMasks(masks)
      await expect(failed).rejects.toMatchObject({ ...INVALID, message: /words/ })
      const next = prefill()
      model.giveMasks(everything())
      expect(await tokens([next])).toEqual(expected)
    }
  })

  test('of a step that fails before them are not those of the next', async () => {
    start()
    const failed = model.step(makeBatch(model, [{ slot: 5, first: 0, tokens: PROMPT, rows: [{ at: 2, mask: 0 }] }]))
    model.giveMasks(only(3))
    const next = prefill()
    model.giveMasks(only(4))
    await expect(failed).rejects.toMatchObject({ ...INVALID, message: /never set/ })
    expect(await tokens([next])).toEqual([4])
  })

  test('are refused where no step waits for them and where they are something else', async () => {
    const refusal = expect.objectContaining(INVALID)
    expect(() => model.giveMasks(everything())).toThrow(refusal)
    start()
    const step = prefill()
    for (const masks of [undefined, [1], new Int32Array(words), new Uint8Array(4 * words)]) {
      expect(() => model.giveMasks(masks as unknown as Uint32Array)).toThrow(refusal)
    }
    model.giveMasks(only(6))
    expect(() => model.giveMasks(only(6))).toThrow(refusal)
    expect(await tokens([step])).toEqual([6])
  })

  test.each<[string, number[]]>([
    ['a mask below none', [-2]],
    ['a mask past the rows', [1]],
    ['more entries than rows', [-1, -1]],
  ])('are refused with %s', async (_, masks) => {
    start()
    const batch = makeBatch(model, [{ slot: 0, first: 0, tokens: PROMPT, rows: [{ at: 2 }] }])
    const rowMasks = Int32Array.from(masks)
    const step = model.step({ ...batch, rowMasks })
    // One that names a mask is given it, whatever is wrong.
    if (rowMasks.some((mask) => mask >= 0)) model.giveMasks(everything())
    await expect(step).rejects.toMatchObject({ ...INVALID, message: /row_masks/ })
  })

  test('that an unload leaves nobody to give fail their step', async () => {
    const other = await device.loadModel(requestOn(options.kind, 'int4'))
    other.setSlot(0, greedyState(PROMPT))
    const step = other.step(makeBatch(other, [{ slot: 0, first: 0, tokens: PROMPT, rows: [{ at: 2, mask: 0 }] }]))
    const unloaded = other.unload()
    expect(() => other.giveMasks(everything())).toThrow('unloaded')
    await expect(step).rejects.toMatchObject(INVALID)
    await unloaded
    expect(await generate(model, PROMPT, 3)).toHaveLength(3)
  })
})

describe('while a step waits for masks', () => {
  test('a worker thread that is terminated ends', async () => {
    // The second load takes far longer than the step's forward pass, on another thread.
    const script = `
      const { parentPort, workerData } = require('node:worker_threads')
      const device = require(workerData.addon).openDevice(workerData.device)
      device.loadModel(workerData.request).then((model) => {
        model.setSlot(0, workerData.state)
        for (let i = 0; i < 3; i++) model.step(workerData.batch).catch(() => {})
        return device.loadModel(workerData.longer)
      }).then(() => parentPort.postMessage('waits'))`
    const device = loadAddon().openDevice(cpuDevice)
    const request = stories260kRequest('int8')
    const model = await device.loadModel(request)
    const batch = makeBatch(model, [{ slot: 0, first: 0, tokens: PROMPT, rows: [{ at: 2, mask: 0 }] }])
    const path = new URL('../../build/native/edgeshift.node', import.meta.url).pathname
    const longer = smollm2Request('int4')
    const workerData = { addon: path, device: cpuDevice, request, longer, state: greedyState(PROMPT), batch }
    const worker = new Worker(script, { eval: true, workerData })
    await new Promise((resolve) => worker.once('message', resolve))
    expect(await worker.terminate()).toBe(1)
    expect(await generate(model, PROMPT, 3)).toHaveLength(3)
    await model.unload()
    await device.close()
  }, 60_000)

  test('a process that exits ends', async () => {
    const script = new URL('../support/exit-beside-masks.ts', import.meta.url).pathname
    const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', script])
    expect(stdout).toBe('waits\n')
  }, 60_000)
})
