/** Loads on demand with the real addon: memory comes back, failures cost nothing, models share what is too small for all. */
import { execFile } from 'node:child_process'
import { copyFileSync, mkdtempSync, rmSync, truncateSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterEach, describe, expect, it } from 'vitest'
import { FinishReason, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import type { NativeDevice } from '../../engine/native.js'
import { MemoryWatch } from '../../engine/residency/memory-watch.js'
import { type InProcessEngine, engineInProcess, tinyModel } from '../support/engine-in-process.js'
import { watchedDevice } from '../support/watched-device.js'
import { runMixed } from '../support/mixed-clients.js'
import { testDevices } from '../support/native-model.js'
import { type TestMemory, testDevice } from '../support/test-device.js'
import { withChanges, withLoads } from '../support/wrapped-native.js'

const open: InProcessEngine[] = []
afterEach(async () => {
  for (const box of open.splice(0)) await box.close()
})

function start(yaml: string, wrap?: (device: NativeDevice) => NativeDevice): InProcessEngine {
  const box = engineInProcess(yaml, wrap)
  open.push(box)
  return box
}

const rungs = (file: string): string =>
  `[{ precision: fp16, path: ${JSON.stringify(file)} }, { precision: int8, from: fp16 }, { precision: int4, from: fp16 }]`
const config = ({ yaml }: TestMemory, file = tinyModel('f16')): string => `
devices: [${yaml}]
scheduler: { max_num_batched_tokens: 64 }
models:
  - { id: a, max_model_len: 128, variants: ${rungs(file)} }
  - { id: b, max_model_len: 128, variants: ${rungs(tinyModel('f16'))} }
`

/** Devices of this machine; where there is no GPU the CPU's tests are the twins of those left out. */
const KINDS = testDevices().flatMap(({ options: { kind }, missing }) => (missing ? [] : [kind]))
const roomy = (kind: 'cpu' | 'cuda'): TestMemory => testDevice({ cpu: 1, cuda: 1 }, kind)

/** Adds bytes to what every variant takes, so that few fit a budget though they are small. */
const BALLAST = { cpu: 32 * 2 ** 20, cuda: 78 * 2 ** 20 }
function heavy(device: TestMemory): InProcessEngine {
  const ballast = BALLAST[device.kind]
  const box = start(config(device), (native) =>
    withLoads(native, async (request) => {
      const model = await native.loadModel(request)
      return withChanges(model, { weightBytes: model.weightBytes + ballast })
    }),
  )
  for (const { known } of box.residency.managed.values()) known.demand.weightBytes += ballast
  return box
}

it('100 loads and unloads with a request each leave the ledger to the byte and the process within 1 %', async () => {
  const script = new URL('../support/load-cycles.ts', import.meta.url).pathname
  const args = ['--expose-gc', '--max-semi-space-size=1', '--import', 'tsx', script, tinyModel('f16'), '100']
  const { stdout } = await promisify(execFile)(process.execPath, args)
  console.log(stdout.trim())
  const { exact, before, after } = JSON.parse(stdout) as { exact: boolean; before: number; after: number }
  expect(exact).toBe(true)
  expect(after).toBeLessThan(before * 1.01)
}, 60_000)

describe.each(KINDS)('a load that fails on a device of kind %s', (kind) => {
  it('for a torn file names it, gives every byte back and leaves others alone', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'es-torn-'))
    const file = join(folder, 'model.gguf')
    copyFileSync(tinyModel('f16'), file)
    const box = start(config(roomy(kind), file))
    await box.settled()
    await box.residency.unload('a:int4')
    const before = box.ledger()
    truncateSync(file, 100_000)
    const torn = await box.ask('a:int4', [1])
    expect(torn.end).toMatchObject({ finishReason: FinishReason.REJECTED, error: { code: 'engine_unavailable' } })
    expect(torn.end.error?.message).toMatch(/model\.gguf/)
    await box.settled()
    expect(box.ledger()).toEqual(before)
    expect(box.variant('a:int4').state).toBe(VariantState.FAILED)
    expect((await box.ask('b:int4', [1])).end.finishReason).toBe(FinishReason.LENGTH)
    copyFileSync(tinyModel('f16'), file)
    expect((await box.ask('a:int4', [1])).end.finishReason).toBe(FinishReason.LENGTH)
    rmSync(folder, { recursive: true })
  })

  it.each([
    ["the model's files", 'files'],
    ['its repacked file', 'packed_file'],
  ])(
    'from %s at any effect of it, one by one: the ledger is exact after each and the next is served',
    async (_, from) => {
      const folder = mkdtempSync(join(tmpdir(), 'es-effects-'))
      const effects = ['loadModel', 'addVariant', 'overBudget'] as const
      let broken: (typeof effects)[number] | undefined
      const cache = from === 'files' ? '' : `server: { cache_dir: ${JSON.stringify(folder)} }\n`
      const box = start(cache + config(roomy(kind)), (device) =>
        withLoads(device, async (request, packed) => {
          if (broken === 'loadModel') throw Object.assign(new Error('no memory'), { code: 'out_of_memory' })
          const model = await device.loadModel(request, packed)
          if (broken === 'overBudget') return withChanges(model, { weightBytes: 2e9 })
          // A block that no slab holds makes the pool throw after the load.
          return broken === 'addVariant' ? withChanges(model, { blockBytes: 2 ** 40 }) : model
        }),
      )
      await box.settled()
      // Both models have the same file: one repacked file for each rung.
      while (box.engine.packed && box.engine.packed.events.written < 3) await setImmediate()
      const variant = box.variant('a:int4')
      const expected = (await box.ask('a:int4', [1])).tokens
      await box.residency.unload('a:int4')
      const before = box.ledger()
      for (const effect of effects) {
        broken = effect
        expect((await box.ask('a:int4', [1])).end.finishReason).toBe(FinishReason.REJECTED)
        await box.settled()
        expect(box.ledger()).toEqual(before)
        broken = undefined
        const { end, tokens } = await box.ask('a:int4', [1])
        expect([end.finishReason, tokens]).toEqual([FinishReason.LENGTH, expected])
        expect(variant.origin).toBe(from)
        await box.residency.unload('a:int4')
        expect(box.ledger()).toEqual(before)
      }
      // No failure was taken for damage of the file.
      const { damaged = 0, stale = 0, evicted = 0 } = box.engine.packed?.events ?? {}
      expect([damaged, stale, evicted]).toEqual([0, 0, 0])
      rmSync(folder, { recursive: true })
    },
  )
})

it.each(KINDS)(
  '200 clients of two models on five rungs with memory for two (%s): nobody starves',
  async (kind) => {
    const box = heavy(testDevice({ cpu: 0.16, cuda: 0.42 }, kind))
    const names = ['a:fp16', 'a:int8', 'a:int4', 'b:fp16', 'b:int4']
    const report = await runMixed(box, names, 200, Number(process.env.EDGESHIFT_MIXED_MS ?? 10_000))
    console.log(`mixed clients (${kind})`, JSON.stringify(report))
    expect(Object.keys(report.ends).filter((end) => !['LENGTH', 'DEADLINE'].includes(end))).toEqual([])
    expect(Object.keys(report.served).toSorted()).toEqual(names.toSorted())
    expect(report.fewest).toBeGreaterThan(0)
    expect(report.loads).toBeGreaterThan(names.length)
    expect(box.engine.running + box.engine.waiting).toBe(0)
    for (const device of box.engine.devices) device.checkInvariants()
    await box.settled()
    expect([...box.engine.variants.values()].filter(({ resident }) => resident).length).toBeLessThanOrEqual(2)
  },
  120_000,
)

describe('MemoryWatch', () => {
  it('finds that the ledger is what the process holds', async () => {
    const box = start(config(roomy('cpu')))
    await box.settled()
    for (const name of box.engine.variants.keys()) await box.ask(name, [1, 2, 3])
    for (const watch of box.residency.watches) void watch.check()
    const drift = box.engine.devices[0]?.drift
    expect(drift?.alarm).toBe(false)
    expect(Math.abs(drift?.driftBytes ?? Infinity)).toBeLessThan(64 * 2 ** 20)
  })

  it('raises an alarm above the overhead, and takes it back', () => {
    const { engine, device, lines } = watchedDevice()
    let anonymousBytes = 5000
    const watch = new MemoryWatch(engine, () => ({ anonymousBytes, scriptBytes: 2000 }))
    const entry = device.ledger.add('weights', 'm', 300)
    const drifts = [5300, 6300, 6301, 5300].map((bytes) => {
      anonymousBytes = bytes
      watch.check()
      return `${device.drift?.measuredBytes} ${device.drift?.driftBytes} ${device.drift?.alarm}`
    })
    watch.close()
    device.ledger.release(entry)
    expect(drifts).toEqual(['300 0 false', '1300 1000 false', '1301 1001 true', '300 0 false'])
    expect(lines).toEqual(['the process holds more memory than the ledger', 'memory and ledger agree again'])
  })
})
