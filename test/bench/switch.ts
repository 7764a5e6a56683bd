/**
 * Switching on a GPU: a 7B-shape rung comes from its files, then from the host cache, while another model decodes; then
 * load and unload cycles of mixed models, after which the driver must have the memory that it had before.
 *   npm run bench:switch -- [cycles]
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadAddon } from '../../engine/addon.js'
import type { LoadRequest, NativeDevice, NativeModel, Precision } from '../../engine/native.js'
import { readModelCard } from '../../engine/registry/index.js'
import { SHAPES, writeRandomCheckpoint } from '../../engine/tools/random-checkpoint.js'
import { greedyState, makeBatch } from '../support/native-model.js'

const cycles = Number(process.argv[2] ?? 200)
const scratch = mkdtempSync(join(tmpdir(), 'edgeshift-switch-'))
const addon = loadAddon()

/** A load of a random checkpoint of a shape, written first. */
function requestOf(shape: string, precision: Precision): LoadRequest {
  const folder = join(scratch, `${shape}-${precision}`)
  const sizes = SHAPES[shape]
  if (sizes === undefined) throw new Error(`no shape ${shape}`)
  writeRandomCheckpoint(folder, sizes, precision)
  const { spec, files, weights } = readModelCard(folder, (file) => addon.readGguf(file))
  return { spec, files, weights, precision, maxSlots: 4, maxBatchTokens: 512, blockSize: 16 }
}

/** MiB that the driver says are in use on the first GPU. */
const usedMemory = (): number =>
  Number(execFileSync('nvidia-smi', ['--query-gpu=memory.used', '--format=csv,noheader,nounits', '-i', '0']))

/** Decodes until told to stop; the times at which steps ended. */
class Decoding {
  readonly ended: number[] = []
  private stopping = false
  private readonly done: Promise<void>

  constructor(private readonly model: NativeModel) {
    this.done = this.run()
  }

  stop(): Promise<void> {
    this.stopping = true
    return this.done
  }

  private async run(): Promise<void> {
    this.model.setSlot(0, greedyState([1]))
    let before: Promise<unknown> = Promise.resolve()
    for (let i = 0; !this.stopping; i++) {
      const sequence = { slot: 0, first: 100 + (i % 100), tokens: [-1], rows: [{ at: 0 }] }
      const step = this.model.step(makeBatch(this.model, [sequence]))
      // oxlint-disable-next-line no-await-in-loop -- two are under way, as in the engine
      await before
      this.ended.push(performance.now())
      before = step
    }
    await before
  }
}

function longestGap(ended: readonly number[], from: number, to: number): number {
  const inside = [from, ...ended.filter((time) => time >= from && time <= to), to]
  return inside.reduce((most, time, i) => Math.max(most, time - (inside[i - 1] ?? time)), 0)
}

interface Switch {
  loadMs: number
  firstTokenMs: number
  gapMs: number
  bytes: number
}

/** Loads, makes a first token from a short prompt, unloads. */
async function comeAndGo(device: NativeDevice, request: LoadRequest, ended: readonly number[]): Promise<Switch> {
  const start = performance.now()
  const model = await device.loadModel(request)
  const loaded = performance.now()
  const prompt = Array.from({ length: 16 }, (_, i) => i + 1)
  model.setSlot(1, greedyState(prompt))
  await model.step(makeBatch(model, [{ slot: 1, first: 0, tokens: prompt, rows: [{ at: 15 }] }]))
  const first = performance.now()
  const bytes = model.weightBytes
  await model.unload()
  return { loadMs: loaded - start, firstTokenMs: first - start, gapMs: longestGap(ended, start, loaded), bytes }
}

const ms = (value: number): string => `${value.toFixed(1)} ms`

try {
  const small = requestOf('smollm2-135m', 'int4')
  const big = requestOf('llama2-7b', 'int4')
  const mixed = (['fp16', 'int8', 'int4'] as const).map((precision) => requestOf('stories-tiny', precision))
  const device = addon.openDevice({
    kind: 'cuda',
    index: 0,
    threads: 1,
    kvArenaBytes: 4 * 2 ** 30,
    hostCacheBytes: 12e9,
  })
  const resident = await device.loadModel(small)
  const other = new Decoding(resident)
  await new Promise((resolve) => setTimeout(resolve, 1000))
  const quiet = longestGap(other.ended, performance.now() - 800, performance.now())
  console.log(`another model decodes alone: longest time between two steps ${ms(quiet)}`)
  for (const source of ['files', 'host cache', 'host cache', 'host cache']) {
    // oxlint-disable-next-line no-await-in-loop -- one after the other
    const { loadMs, firstTokenMs, gapMs, bytes } = await comeAndGo(device, big, other.ended)
    const rate = `${(bytes / loadMs / 1e6).toFixed(1)} GB/s`
    console.log(
      `7B int4 from ${source}: loaded in ${ms(loadMs)} (${rate}), first token after ${ms(firstTokenMs)}, the other's longest gap ${ms(gapMs)}`,
    )
  }
  await other.stop()
  const requests = [...mixed, small]
  // oxlint-disable no-await-in-loop -- cycles
  for (const request of requests) await comeAndGo(device, request, [])
  const before = usedMemory()
  const start = performance.now()
  for (let i = 0; i < cycles; i++) {
    const request = requests[i % requests.length]
    if (request) await comeAndGo(device, request, [])
  }
  // oxlint-enable no-await-in-loop
  console.log(
    `${cycles} loads and unloads in ${ms(performance.now() - start)}: ${before} MiB in use before, ${usedMemory()} after`,
  )
  await resident.unload()
  await device.close()
} finally {
  rmSync(scratch, { recursive: true, force: true })
}
