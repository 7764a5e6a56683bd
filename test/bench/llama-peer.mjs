// One measurement of llama.cpp (the CPU library that node-llama-cpp ships), printed as one JSON line.
// `node llama-peer.mjs FOLDER_OF_THE_LIBRARY MODEL.gguf THREADS`
import { createRequire } from 'node:module'
import { join } from 'node:path'

const [folder, modelPath, threads] = process.argv.slice(2)
const binding = createRequire(import.meta.url)(join(folder, 'llama-addon.node'))
binding.setLogger(() => {})
binding.loadBackends()
binding.loadBackends(folder)
await binding.init()

const model = new binding.AddonModel(modelPath, { gpuLayers: 0, useMmap: true, addonExports: binding })
if (!(await model.init())) throw new Error(`llama.cpp could not load ${modelPath}`)
const context = new binding.AddonContext(model, {
  contextSize: 16 * 512,
  batchSize: 512,
  sequences: 16,
  threads: Number(threads),
  flashAttention: true,
})
await context.init()
context.setThreads(Number(threads))

// Milliseconds of one llama_decode over `sequences` sequences of `count` tokens each; the logits of the last of each.
async function decode(sequences, position, count) {
  context.initBatch(sequences * count)
  for (let s = 0; s < sequences; s++) {
    const tokens = Uint32Array.from({ length: count }, (_, i) => 1000 + ((position + i) % 1000))
    context.addToBatch(s, position, tokens, Uint32Array.of(count - 1))
  }
  const started = performance.now()
  await context.decodeBatch()
  return performance.now() - started
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1]

async function decodeRate(sequences, prompt, steps) {
  for (let s = 0; s < 16; s++) context.disposeSequence(s)
  const prefill = await decode(sequences, 0, prompt)
  const times = []
  for (let i = 0; i < steps; i++) times.push(await decode(sequences, prompt + i, 1))
  return { prefill: (sequences * prompt * 1000) / prefill, decode: (sequences * 1000) / median(times) }
}

await decodeRate(1, 256, 8)
const single = await decodeRate(1, 256, 64)
const eight = await decodeRate(8, 32, 24)
const sixteen = await decodeRate(16, 32, 24)
console.log(
  JSON.stringify({
    prefill256: single.prefill,
    decode1: single.decode,
    decode8: eight.decode,
    decode16: sixteen.decode,
    system: binding.systemInfo(),
  }),
)
process.exit(0)
