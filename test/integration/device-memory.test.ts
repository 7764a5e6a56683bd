/** What a GPU's driver says against the ledger after every operation, load and unload cycles, and two devices at once. */
import { afterEach, describe, expect, it } from 'vitest'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { loadAddon } from '../../engine/addon.js'
import { DriverWatch } from '../../engine/residency/driver-watch.js'
import { engineInProcess, type InProcessEngine, tinyModel } from '../support/engine-in-process.js'
import { testDevices } from '../support/native-model.js'
import { testDevice } from '../support/test-device.js'

const open: InProcessEngine[] = []
afterEach(async () => {
  for (const box of open.splice(0)) await box.close()
})

const rungs = (file: string): string =>
  `[{ precision: fp16, path: ${JSON.stringify(file)} }, { precision: int8, from: fp16 }, { precision: int4, from: fp16 }]`

/** Two models of three rungs each, on the devices given by their entries in the configuration. */
function start(devices: readonly string[], places: readonly string[] = []): InProcessEngine {
  const model = (id: string, file: string, index: number): string => {
    const place = places[index] === undefined ? '' : `, placement: { devices: [${places[index]}] }`
    return `{ id: ${id}, max_model_len: 128, variants: ${rungs(file)}${place} }`
  }
  const box = engineInProcess(`
devices: [${devices.join(', ')}]
scheduler: { max_num_batched_tokens: 64 }
models: [${model('tiny', tinyModel('f16'), 0)}, ${model('coded', tinyModel('q4_1'), 1)}]
`)
  open.push(box)
  return box
}

const KINDS = testDevices().flatMap(({ options: { kind }, missing }) => (missing ? [] : [kind]))
const roomy = (kind: 'cpu' | 'cuda'): string => testDevice({ cpu: 2, cuda: 4 }, kind).yaml
const NAMES = ['tiny:fp16', 'tiny:int8', 'tiny:int4', 'coded:fp16', 'coded:int8', 'coded:int4']

/** What the driver says of the first device; undefined on a CPU. */
const usedBytes = (box: InProcessEngine): Promise<number | undefined> =>
  [...box.residency.slots.values()][0]?.open.native.usedBytes() ?? Promise.resolve(undefined)

async function unloadAll(box: InProcessEngine): Promise<void> {
  await box.settled()
  for (const name of NAMES) if (box.variant(name).resident) await box.residency.unload(name)
}

it.each(KINDS)(
  '200 loads and unloads of mixed models leave the ledger and the driver as before (%s)',
  async (kind) => {
    const box = start([roomy(kind)])
    await unloadAll(box)
    const cycle = async (count: number): Promise<void> => {
      for (let i = 0; i < count; i++) {
        const name = NAMES[i % NAMES.length] ?? ''
        const { end } = await box.ask(name, [1, 2, 3], { maxTokens: 2 })
        expect(end.finishReason).toBe(FinishReason.LENGTH)
        await box.residency.unload(name)
      }
    }
    // Code that is loaded on first use is there afterwards.
    await cycle(NAMES.length)
    const ledger = box.ledger()
    const before = await usedBytes(box)
    await cycle(200)
    expect(box.ledger()).toEqual(ledger)
    const after = await usedBytes(box)
    console.log(`200 cycles on ${kind}: ${before ?? 'no'} bytes in use before, ${after ?? 'no'} after`)
    expect(after).toBe(before)
  },
  120_000,
)

it.skipIf(!KINDS.includes('cuda'))(
  "a GPU's driver takes what the ledger says at each load and unload (skipped where there is none; MemoryWatch is its twin)",
  async () => {
    const box = start([roomy('cuda')])
    const driver = box.residency.watches.find((watch) => watch instanceof DriverWatch)
    await unloadAll(box)
    const context = box.engine.devices[0]?.ledger.entries.find(({ kind }) => kind === 'context')?.bytes ?? 0
    console.log('context and other programs, bytes:', context)
    expect(context).toBeGreaterThan(32 * 2 ** 20)
    const drifts: number[] = []
    const check = async (): Promise<void> => {
      await driver?.check()
      const drift = box.engine.devices[0]?.drift
      expect(drift?.alarm).toBe(false)
      drifts.push(drift?.driftBytes ?? Number.NaN)
    }
    for (const name of NAMES) {
      await box.ask(name, [1, 2, 3], { maxTokens: 4 })
      await check()
    }
    for (const name of NAMES) {
      await box.residency.unload(name)
      await check()
    }
    console.log('driver less ledger, bytes:', drifts.join(', '))
    // Allocations under a megabyte share pieces of 2 MiB; code and graphs come with first use.
    for (const drift of drifts) expect(Math.abs(drift)).toBeLessThan(32 * 2 ** 20)
  },
  60_000,
)

type Kind = 'cpu' | 'cuda'
const GPUS = loadAddon()
  .devices()
  .filter(({ kind }) => kind === 'cuda').length

describe('two devices of one engine', () => {
  const pairs: { kinds: [Kind, Kind]; gpus: number }[] = [
    { kinds: ['cpu', 'cpu'], gpus: 0 },
    { kinds: ['cuda', 'cpu'], gpus: 1 },
    { kinds: ['cuda', 'cuda'], gpus: 2 },
  ]
  // Those of GPUs that are not there are left out; two CPU devices are their twins.
  it.each(pairs.filter(({ gpus }) => gpus <= GPUS))(
    'of kinds $kinds serve models placed on them at the same time',
    async ({ kinds }) => {
      const ids = ['one', 'two'] as const
      const devices = kinds.map((kind, i) => {
        const index = kind === 'cuda' ? `, index: ${i}` : ''
        return testDevice({ cpu: 1, cuda: 2 }, kind).yaml.replace(/id: \w+/, `id: ${ids[i]}${index}`)
      })
      const box = start(devices, ids)
      const answers = await Promise.all(
        Array.from({ length: 12 }, (_, i) => box.ask(NAMES[i % NAMES.length] ?? '', [1, 2, 3], { maxTokens: 8 })),
      )
      for (const { tokens, end } of answers) {
        expect(end.finishReason).toBe(FinishReason.LENGTH)
        expect(tokens).toHaveLength(8)
      }
      const texts = answers.map(({ tokens }) => tokens)
      expect(texts.slice(NAMES.length)).toEqual(texts.slice(0, NAMES.length))
      for (const name of NAMES) expect(box.variant(name).device).toBe(name.startsWith('tiny') ? 'one' : 'two')
      const owners = box.engine.devices.map(({ ledger }) =>
        ledger.entries.flatMap(({ kind, owner }) => (kind === 'weights' ? owner : [])).toSorted(),
      )
      expect(owners).toEqual([
        NAMES.filter((name) => name.startsWith('tiny')).toSorted(),
        NAMES.filter((name) => name.startsWith('coded')).toSorted(),
      ])
      for (const device of box.engine.devices) device.checkInvariants()
    },
  )
})
