/** Repacked files with the real addon: the same weights come back, damage is found wherever it is, an unload ends a save. */
import { execFile } from 'node:child_process'
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, NativeDevice, NativeModel, PackedSource, Precision } from '../../engine/native.js'
import { tinyModel, engineInProcess } from '../support/engine-in-process.js'
import { goldenRequest } from '../support/golden.js'
import { generate, smollm2Request, testDevices } from '../support/native-model.js'
import { testDevice } from '../support/test-device.js'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'es-packed-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

const ACT_ORDER = 'gptq/w4_g32_asym_actorder_v2'
const KEY = 'what it was made of'
/** The weights of a small checkpoint at a rung. */
const rung = (precision: Precision): LoadRequest => ({ ...goldenRequest('plain/llama_fp16'), precision })
const target = (key = KEY): PackedSource => ({ path: join(folder, 'file'), key })

function flip(path: string, at: number): void {
  const file = openSync(path, 'r+')
  writeSync(file, Buffer.from([0xa5]), 0, 1, at)
  closeSync(file)
}

const text = (model: NativeModel): Promise<number[]> => generate(model, [1, 2, 3, 4, 5], 12)

for (const { name, options, missing } of testDevices()) {
  describe.skipIf(missing)(`repacked files on ${name}`, () => {
    const device: NativeDevice | undefined = missing ? undefined : loadAddon().openDevice(options)
    afterAll(() => device?.close())
    const load = async (request: LoadRequest, packed?: PackedSource): Promise<NativeModel> => {
      if (!device) throw new Error('no device')
      return device.loadModel(request, packed)
    }

    it.each<[string, LoadRequest]>([
      ['fp16', rung('fp16')],
      ['int8', rung('int8')],
      ['int4', rung('int4')],
      ['act-order', { ...goldenRequest(ACT_ORDER), precision: 'int4' }],
    ])('give %s as it was', async (_, request) => {
      const first = await load(request)
      expect(first).toMatchObject({ origin: 'files', packedFault: '' })
      await first.savePacked(target())
      const expected = { tokens: await text(first), rounding: first.roundingError, bytes: first.weightBytes }
      await first.unload()
      const second = await load(request, target())
      expect(second).toMatchObject({ origin: 'packed_file', packedFault: '' })
      expect({ tokens: await text(second), rounding: second.roundingError, bytes: second.weightBytes }).toEqual(
        expected,
      )
      await second.unload()
    })

    it('are not used where they are damaged, torn, missing or of something else', async () => {
      const request = rung('int8')
      const first = await load(request)
      const expected = await text(first)
      const { packedBytes } = first
      const faults: [() => PackedSource, RegExp][] = [
        [() => target('of other files'), /made of other files/],
        [() => ({ path: join(folder, 'missing'), key: KEY }), /cannot open/],
        ...[0, packedBytes >> 1, packedBytes - 1].map(damagedAt(/content is damaged/)),
        ...[4096 * Math.ceil(packedBytes / 4096) + 17].map(damagedAt(/description is damaged/)),
        ...[0, 7, 4096, packedBytes, -8, -1].map(tornAt),
      ]
      for (const [make, reason] of faults) {
        rmSync(target().path, { force: true })
        await first.savePacked(target())
        const model = await load(request, make())
        expect(model.packedFault).toMatch(reason)
        expect(model.origin).toBe('files')
        expect(await text(model)).toEqual(expected)
        await model.unload()
      }
      await first.unload()
    })

    it('are not used for another rung of the same key', async () => {
      const first = await load(rung('fp16'))
      await first.savePacked(target())
      const other = await load(rung('int4'), target())
      expect(other.packedFault).toMatch(/the repacked file has \d+ bytes, not \d+/)
      expect(other.origin).toBe('files')
      await Promise.all([first.unload(), other.unload()])
    })

    it('that are there already are not written over', async () => {
      const model = await load(rung('int8'))
      await model.savePacked(target())
      await expect(model.savePacked(target())).rejects.toMatchObject({ code: 'io_error', message: /File exists/ })
      expect(existsSync(target().path)).toBe(true)
      await model.unload()
    })
  })
}

const damagedAt =
  (reason: RegExp) =>
  (at: number): [() => PackedSource, RegExp] => [
    () => {
      flip(target().path, at)
      return target()
    },
    reason,
  ]

/** Cut to so many bytes; below 0: so many fewer. */
const tornAt = (bytes: number): [() => PackedSource, RegExp] => [
  () => {
    truncateSync(target().path, bytes < 0 ? statSync(target().path).size + bytes : bytes)
    return target()
  },
  /too short|torn|damaged|version/,
]

it('an unload ends a save, and nothing is left of it', async () => {
  const device = loadAddon().openDevice({ kind: 'cpu', index: 0, threads: 2, kvArenaBytes: 1 << 20 })
  const model = await device.loadModel(smollm2Request('fp16', 16))
  const saved = model.savePacked(target()).then(
    () => 'written',
    (error: unknown) => error,
  )
  await model.unload()
  expect(await saved).toMatchObject({ code: 'invalid_argument', message: /stopped/ })
  expect(readdirSync(folder)).toEqual([])
  await device.close()
})

it.skipIf(process.platform !== 'linux')(
  'an unload does not wait for the disk that a save waits for',
  async () => {
    const source = new URL('../support/held-write.cpp', import.meta.url).pathname
    const script = new URL('../support/unload-beside-write.ts', import.meta.url).pathname
    const library = join(folder, 'held-write.so')
    const files = { HELD_FILE: target().path, HELD: join(folder, 'held'), GO: join(folder, 'go') }
    const run = promisify(execFile)
    await run(process.env.CXX ?? 'c++', ['-shared', '-fPIC', '-o', library, source, '-ldl'])
    await run('mkfifo', [files.HELD, files.GO])
    const env = { ...process.env, ...files, LD_PRELOAD: library }
    const { stdout } = await run(process.execPath, ['--import', 'tsx', script], {
      env,
      timeout: 20_000,
      killSignal: 'SIGKILL',
    })
    expect(stdout).toMatch(/stopped/)
    expect(existsSync(target().path)).toBe(false)
  },
  60_000,
)

const KINDS = testDevices().flatMap(({ options: { kind }, missing }) => (missing ? [] : [kind]))

it.each(KINDS)(
  'an engine takes a rung that comes back from its repacked file (%s), to the same answer and ledger',
  async (kind) => {
    const box = engineInProcess(`
server: { cache_dir: ${JSON.stringify(folder)} }
devices: [${testDevice({ cpu: 1, cuda: 1 }, kind).yaml}]
models: [{ id: a, max_model_len: 128, variants: [{ precision: int8, path: ${JSON.stringify(tinyModel('f16'))} }] }]
`)
    await box.settled()
    const variant = box.variant('a:int8')
    const before = { ...(await box.ask('a:int8', [1, 2, 3], { maxTokens: 8 })), ledger: box.ledger() }
    while (box.engine.packed?.events.written === 0) await new Promise((resolve) => setImmediate(resolve))
    expect(variant.origin).toBe('files')
    await box.residency.unload('a:int8')
    expect((await box.ask('a:int8', [1, 2, 3], { maxTokens: 8 })).tokens).toEqual(before.tokens)
    expect(variant.origin).toBe('packed_file')
    expect(box.ledger()).toEqual(before.ledger)
    expect(box.engine.packed?.events).toMatchObject({ hit: 1, miss: 1, written: 1 })
    await box.close()
  },
)
