/**
 * Loads a model, asks it something and unloads it, again and again, in a process of its own:
 *   node --expose-gc --max-semi-space-size=1 --import tsx test/support/load-cycles.ts MODEL CYCLES
 * Prints one line of JSON: the ledger is the same to the byte, and resident memory before and after the cycles.
 */
import { readFileSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import { engineInProcess } from './engine-in-process.js'

const [file = '', cycles = '100'] = process.argv.slice(2)
const box = engineInProcess(`
devices: [{ id: cpu0, kind: cpu, threads: 2, memory_gb: 2 }]
scheduler: { max_num_batched_tokens: 64 }
models: [{ id: m, max_model_len: 128, variants: [{ path: ${JSON.stringify(file)} }] }]
`)

function residentBytes(): number {
  globalThis.gc?.()
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024
}

async function cycle(count: number): Promise<void> {
  const [name = ''] = box.engine.variants.keys()
  for (let i = 0; i < count; i++) {
    const { end } = await box.ask(name, [1, 2, 3])
    if (end.error) throw new Error(end.error.message)
    await box.residency.unload(name)
  }
}

await box.settled()
// The allocator's pools, threads and compiled code are there after some.
await cycle(2 * Number(cycles))
const ledger = box.ledger()
const before = residentBytes()
await cycle(Number(cycles))
const after = residentBytes()
console.log(JSON.stringify({ cycles: Number(cycles), exact: isDeepStrictEqual(box.ledger(), ledger), before, after }))
await box.close()
