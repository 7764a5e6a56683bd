/** Preempted sequences of the real addon: their blocks go to host memory and come back, and the text is as if nobody came between. */
import { afterEach, describe, expect, it } from 'vitest'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { type Answer, type InProcessEngine, engineInProcess, tinyModel } from '../support/engine-in-process.js'
import type { NativeDevice } from '../../engine/native.js'
import type { SwapSpace } from '../../engine/kv/swap-space.js'
import { Collector, neutralSampling, submitOf } from '../support/fake-engine.js'
import { testDevices } from '../support/native-model.js'
import { tokenAtTie } from '../support/near-ties.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { testDevice } from '../support/test-device.js'
import { withChanges, withLoads } from '../support/wrapped-native.js'

type Kind = 'cpu' | 'cuda'
const KINDS = testDevices().flatMap(({ options: { kind }, missing }) => (missing ? [] : [kind]))

/** Each sequence takes six. */
const BLOCKS = 14
/** A model, and more sequences than fit: on a GPU the memory of 14 blocks is one slab, and holds more. */
const MANY = {
  cpu: { file: tinyModel('f16'), sequences: 6, memory: 0.1 },
  cuda: { file: SMOLLM2_FILE, sequences: 16, memory: 1.5 },
}
const LARGE = { file: SMOLLM2_FILE, sequences: 6, memory: 1 }

const open: InProcessEngine[] = []
afterEach(async () => {
  for (const box of open.splice(0)) await box.close()
})

/** A model with KV memory for about two of the sequences below, on a GPU for a few. */
async function start(
  swap: number,
  kind: Kind,
  { file, memory } = MANY[kind],
  wrap?: (device: NativeDevice) => NativeDevice,
): Promise<InProcessEngine> {
  const { yaml } = testDevice({ cpu: memory, cuda: memory }, kind)
  const config = `
devices: [${yaml.replace('}', `, swap_gb: ${swap} }`)}]
models: [{ id: m, max_model_len: 128, variants: [{ precision: int4, path: ${JSON.stringify(file)} }] }]
`
  const box = engineInProcess(config, wrap)
  open.push(box)
  await box.settled()
  const [device] = box.engine.devices
  const blockBytes = box.variant('m:int4').resident?.blockBytes ?? 0
  device?.arena.setLimit(Math.ceil((BLOCKS * blockBytes) / device.arena.slabBytes))
  return box
}

/** Claims that steps take a thousand times as long as they do: then copies pay on every machine. */
const slow = (device: NativeDevice): NativeDevice =>
  withLoads(device, async (request, packed) => {
    const model = await device.loadModel(request, packed)
    return withChanges(model, {
      step: async (batch) => {
        const result = await model.step(batch)
        return { ...result, deviceMicros: result.deviceMicros * 1000 }
      },
    })
  })

const prompt = (index: number): number[] =>
  Array.from({ length: 60 + index }, (_, i) => 1 + ((i * 7 + index * 31) % 90))
const sampling = (index: number) => neutralSampling({ seed: index, temperature: index % 2 })

/** Sequences at a time, more than fit; greedy and sampled. */
function askAll(box: InProcessEngine, sequences: number): Promise<Answer[]> {
  return Promise.all(
    Array.from({ length: sequences }, (_, index) =>
      box.ask('m:int4', prompt(index), { maxTokens: 30, sampling: sampling(index) }),
    ),
  )
}

/** How many of the texts are others; on a GPU those that part from the expected ones at a near tie are none of them. */
async function wrong(box: InProcessEngine, texts: number[][], expected: number[][], kind: Kind): Promise<number> {
  let others = 0
  let ties = 0
  for (const [index, tokens] of texts.entries()) {
    const usual = expected[index] ?? []
    const at = usual.findIndex((token, place) => token !== tokens[place])
    if (at < 0) continue
    const place = { variant: 'm:int4', prompt: prompt(index), before: usual.slice(0, at), sampling: sampling(index) }
    // oxlint-disable-next-line no-await-in-loop -- alone
    if (kind === 'cuda' && (await tokenAtTie(box, place, usual[at] ?? -1)) === tokens[at]) ties++
    else others++
  }
  if (ties > 0) console.log(`${ties} of ${texts.length} texts parted at a near tie`)
  return others
}

function swapOf(box: InProcessEngine): SwapSpace {
  const swap = box.engine.devices[0]?.swap
  if (!swap) throw new Error('no swap memory')
  return swap
}

describe.each(KINDS)('swap memory of a device of kind %s', { timeout: 60_000 }, (kind) => {
  it('gives the same texts with room for all, for some and for none', async () => {
    const { sequences } = MANY[kind]
    const none = await start(0, kind)
    const expected = (await askAll(none, sequences)).map(({ tokens }) => tokens)
    expect(none.engine.devices[0]?.counters.preemptions).toBeGreaterThan(0)
    expect(none.engine.devices[0]?.swap).toBeUndefined()
    for (const [gigabytes, full] of [
      [kind === 'cuda' ? 0.1 : 0.01, false],
      [0.00002, true],
    ] as const) {
      const box = await start(gigabytes, kind)
      const texts = (await askAll(box, sequences)).map(({ tokens }) => tokens)
      expect(await wrong(box, texts, expected, kind)).toBe(0)
      const { counters, usedBytes } = swapOf(box)
      console.log(`swap_gb ${gigabytes} on ${kind}`, JSON.stringify(counters))
      expect(counters.full > 0).toBe(full)
      expect(counters.out + counters.recomputed + counters.full).toBeGreaterThan(0)
      expect(counters.in).toBeLessThanOrEqual(counters.out)
      expect(usedBytes).toBe(0)
      expect(box.ledger()).toContain(`swap  ${gigabytes * 1e9}`)
      for (const device of box.engine.devices) device.checkInvariants()
    }
  })

  it('gives back what a cancelled sequence and a lost session held', async () => {
    const box = await start(0.05, kind, kind === 'cpu' ? LARGE : MANY.cuda, slow)
    const sequences = Array.from({ length: MANY[kind].sequences }, (_, index) => {
      const collector = new Collector()
      const submit = submitOf(900 + index, prompt(index), { variant: 'm:int4', maxTokens: 60 })
      return { sequence: box.engine.submit(submit, collector), collector }
    })
    const swapped = () => sequences.filter(({ sequence }) => sequence?.swapped !== undefined)
    while (swapped().length === 0) await new Promise((resolve) => setImmediate(resolve))
    const [first] = swapped()
    const before = swapOf(box).usedBytes
    const held = (first?.sequence?.swapped?.blocks.length ?? 0) * (box.variant('m:int4').resident?.blockBytes ?? 0)
    if (first?.sequence) first.sequence.holder?.end(first.sequence, FinishReason.CANCELLED, performance.now())
    expect(swapOf(box).usedBytes).toBe(before - held)
    for (const { sequence } of sequences) sequence?.holder?.end(sequence, FinishReason.CANCELLED, performance.now())
    expect(swapOf(box).usedBytes).toBe(0)
  })

  it('keeps what a rung had when it is unloaded in mid-answer, until it is back', async () => {
    const box = await start(0.05, kind, kind === 'cpu' ? LARGE : MANY.cuda, slow)
    const resident = box.variant('m:int4')
    const scheduler = resident.resident?.scheduler
    if (!scheduler) throw new Error('not loaded')
    const undisturbed = await box.ask(resident.name, prompt(1), { maxTokens: 30 })
    const running = box.ask(resident.name, prompt(1), { maxTokens: 30 })
    while (scheduler.running.every(({ outputLength }) => outputLength < 5))
      await new Promise((resolve) => setImmediate(resolve))
    // As at the end of a turn.
    for (const sequence of scheduler.withdraw(true)) box.engine.lobby.add(sequence)
    expect(swapOf(box).usedBytes).toBeGreaterThan(0)
    // It is loaded again at once for those who wait.
    box.residency.review()
    await box.residency.unload(resident.name).catch(() => undefined)
    expect((await running).tokens).toEqual(undisturbed.tokens)
    expect(resident.loads).toBe(2)
    expect(swapOf(box).counters).toMatchObject({ out: 1, in: 1 })
    expect(swapOf(box).usedBytes).toBe(0)
  })
})
