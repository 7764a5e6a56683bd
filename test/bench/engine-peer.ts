/** One measurement of our native engine on the embedded model, as one JSON line; the twin of llama-peer.mjs. */
import { loadAddon } from '../../engine/addon.js'
import type { NativeModel, Precision } from '../../engine/native.js'
import { cpuDevice, greedyState, makeBatch, smollm2Request } from '../support/native-model.js'
import { percentile } from './figures.js'

const [precision = 'int4', threads = '2'] = process.argv.slice(2)
const device = loadAddon().openDevice({ ...cpuDevice, threads: Number(threads), kvArenaBytes: 1 << 30 })
const model = await device.loadModel({ ...smollm2Request(precision as Precision), maxSlots: 16 })

/** Milliseconds of one step over `sequences` sequences of `count` tokens each, the last of each sampled. */
async function step(sequences: number, first: number, count: number): Promise<number> {
  const tokens = Array.from({ length: count }, (_, i) => 1000 + ((first + i) % 1000))
  const steps = Array.from({ length: sequences }, (_, slot) => ({ slot, first, tokens, rows: [{ at: count - 1 }] }))
  const batch = makeBatch(model, steps)
  const started = performance.now()
  await model.step(batch)
  return performance.now() - started
}

async function rates(sequences: number, prompt: number, steps: number): Promise<{ prefill: number; decode: number }> {
  for (let slot = 0; slot < sequences; slot++) model.setSlot(slot, greedyState([]))
  const prefill = await step(sequences, 0, prompt)
  const times: number[] = []
  for (let i = 0; i < steps; i++) times.push(await step(sequences, prompt + i, 1))
  return { prefill: (sequences * prompt * 1000) / prefill, decode: (sequences * 1000) / percentile(times, 0.5) }
}

await rates(1, 256, 8)
const single = await rates(1, 256, 64)
const eight = await rates(8, 32, 24)
const sixteen = await rates(16, 32, 24)
console.log(
  JSON.stringify({
    prefill256: single.prefill,
    decode1: single.decode,
    decode8: eight.decode,
    decode16: sixteen.decode,
    weightBytes: (model satisfies NativeModel).weightBytes,
  }),
)
await model.unload()
await device.close()
