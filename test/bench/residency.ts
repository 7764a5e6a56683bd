/**
 * Loads on demand with the embedded model on the CPU: time from a request to its first token when its rung has to be
 * loaded, with the file in the page cache and without; how long another model's stream stands still meanwhile; and many
 * clients on memory for two rungs, through the gateway. `npm run bench:residency [-- --mixed-ms 60000]` (Linux).
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { parseArgs } from 'node:util'
import { engineInProcess, type InProcessEngine } from '../support/engine-in-process.js'
import { GatewayProcess } from '../support/gateway-process.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { Collector, submitOf } from '../support/fake-engine.js'
import { percentile } from './figures.js'

const { values } = parseArgs({ options: { 'mixed-ms': { type: 'string', default: '60000' } } })
const ROUNDS = 5
const PROMPT = [1, 2, 3, 4]
const ladder = `[{ precision: fp16, path: ${JSON.stringify(SMOLLM2_FILE)} }, { precision: int8, from: fp16 }, { precision: int4, from: fp16 }]`
const cache = mkdtempSync(join(tmpdir(), 'edgeshift-packed-'))
const config = (gigabytes: number, models: readonly string[], server = ''): string => `
${server}
devices: [{ id: cpu0, kind: cpu, memory_gb: ${gigabytes} }]
models: [${models.map((id) => `{ id: ${id}, max_model_len: 512, variants: ${ladder} }`).join(', ')}]
`

/** Drops the file from the page cache; false where the system does not allow it. */
function forget(file: string): boolean {
  try {
    execFileSync('dd', [`if=${file}`, 'iflag=nocache', 'count=0'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

const median = (samples: readonly number[]): string =>
  samples.length > 0 ? `${percentile(samples, 0.5).toFixed(0)} ms` : 'not measured'

/** Request to first token of a rung that is resident, then of one whose source is in the page cache and on the disk alone. */
async function switches(box: InProcessEngine, rung: string, source: string): Promise<[number[], number[], number[]]> {
  const warm: number[] = []
  const cold: number[] = []
  const resident: number[] = []
  const first = async (): Promise<number> => (await box.ask(rung, PROMPT, { maxTokens: 1 })).firstTokenMs ?? Number.NaN
  await first()
  for (let round = 0; round < ROUNDS; round++) {
    resident.push(await first())
    await box.residency.unload(rung)
    warm.push(await first())
    await box.residency.unload(rung)
    if (forget(source)) cold.push(await first())
    else await first()
  }
  return [resident, warm, cold]
}

/** Every tier in turn: the model's file without a folder for repacked ones, then the repacked file. */
async function tiers(rung: string): Promise<void> {
  const [resident, file, fileCold] = await switches(large, rung, SMOLLM2_FILE)
  const store = repackedFile(rung)
  const [, packed, packedCold] = await switches(packing, rung, store)
  console.log(
    `${rung}: request to first token ${median(resident)} resident; from the repacked file (${(statSync(store).size / 1e6).toFixed(0)} MB) ` +
      `${median(packed)} in the page cache (a CPU device's host copy), ${median(packedCold)} on disk; from the model's file ` +
      `${median(file)} in the page cache, ${median(fileCold)} on disk`,
  )
}

/** A rung's repacked file, which is there. */
function repackedFile(rung: string): string {
  const request = packing.residency.managed.get(rung)?.known.request
  const layout = packing.residency.slots.get('cpu0')?.open.native.packedLayout
  const name = request && packing.engine.packed?.name(request, layout ?? '')
  return join(cache, name?.file ?? '')
}

/** Milliseconds between the tokens of one stream of `count` tokens, while `meanwhile` runs from its fifth token on. */
async function gaps(box: InProcessEngine, count: number, meanwhile: () => Promise<void>): Promise<number[]> {
  const times: number[] = []
  const collector = new Collector()
  let other: Promise<void> | undefined
  box.engine.submit(submitOf(1_000_000 + times.length, PROMPT, { variant: 'b:int4', maxTokens: count }), {
    blockedSince: undefined,
    deliver: (delta) => {
      if (delta.tokens.length > 0) times.push(performance.now())
      if (times.length === 5) other ??= meanwhile()
      collector.deliver(delta)
    },
  })
  await collector.done
  await other
  return times.slice(1).map((time, i) => time - (times[i] ?? time))
}

async function stalls(box: InProcessEngine): Promise<void> {
  await box.residency.load('b:int4')
  const alone: number[] = []
  const meanwhile: number[] = []
  let longestDelay = 0
  // In turns: a single stream's hundredth part is three gaps.
  for (let round = 0; round < ROUNDS; round++) {
    alone.push(...(await gaps(box, 300, async () => {})))
    const delay = monitorEventLoopDelay({ resolution: 1 })
    delay.enable()
    const loads = async (): Promise<void> => {
      for (const rung of ['a:fp16', 'a:int8', 'a:int4']) {
        await box.residency.load(rung)
        await box.residency.unload(rung)
      }
    }
    meanwhile.push(...(await gaps(box, 300, loads)))
    delay.disable()
    longestDelay = Math.max(longestDelay, delay.max / 1e6)
  }
  const describe = (samples: number[]): string =>
    `median ${percentile(samples, 0.5).toFixed(1)} ms, p99 ${percentile(samples, 0.99).toFixed(1)} ms, longest ${Math.max(...samples).toFixed(1)} ms`
  console.log(`another model's stream, between two tokens: ${describe(alone)} undisturbed;`)
  console.log(
    `  ${describe(meanwhile)} while three rungs are loaded and unloaded (event loop: longest delay ${longestDelay.toFixed(1)} ms)`,
  )
}

const large = engineInProcess(config(3, ['a', 'b']))
await large.settled()
for (const rung of ['a:fp16', 'a:int8', 'a:int4']) await large.residency.unload(rung)
const packing = engineInProcess(config(3, ['a'], `server: { cache_dir: ${JSON.stringify(cache)} }`))
await packing.settled()
while (packing.engine.packed?.events.written !== 3) await new Promise((resolve) => setTimeout(resolve, 5))
for (const rung of ['a:fp16', 'a:int8', 'a:int4']) await packing.residency.unload(rung)
for (const rung of ['a:fp16', 'a:int8', 'a:int4']) await tiers(rung)
await packing.close()
rmSync(cache, { recursive: true })
for (const rung of ['a:fp16', 'a:int8', 'a:int4']) await large.residency.unload(rung)
await stalls(large)
await large.close()

interface Mixed {
  latencies: number[]
  outcomes: Map<string, number>
}

/** `clients` ask by id, rung and tag, one request after the other; answers count by the rung that served them. */
async function mixedClients(url: string, names: readonly string[], clients: number, until: number): Promise<Mixed> {
  const mixed: Mixed = { latencies: [], outcomes: new Map() }
  const client = async (index: number): Promise<void> => {
    for (let turn = 0; performance.now() < until; turn++) {
      const model = names[(index + turn) % names.length]
      const startedAt = performance.now()
      const response = await fetch(`${url}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model, prompt: PROMPT, max_tokens: 1 + ((index + turn) % 4) }),
      })
      await response.text()
      mixed.latencies.push(performance.now() - startedAt)
      const outcome = response.headers.get('x-edgeshift-variant') ?? String(response.status)
      mixed.outcomes.set(outcome, (mixed.outcomes.get(outcome) ?? 0) + 1)
    }
  }
  await Promise.all(Array.from({ length: clients }, (_, index) => client(index)))
  return mixed
}

/** Room for two of the rungs asked for. */
const models = `  - { id: a, tags: [chat, default], max_model_len: 256, variants: ${ladder} }
  - { id: b, tags: [code], max_model_len: 256, variants: ${ladder} }
`
const box = await GatewayProcess.startShipped(
  () =>
    `server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0", engine_wait: 60s }\ndevices: [{ id: cpu0, kind: cpu, memory_gb: 0.42 }]\nmodels:\n${models}`,
).ready()
const names = ['chat', 'default', 'code', 'a:int8', 'a:int4', 'b:int8', 'b:int4']
const { latencies, outcomes } = await mixedClients(box.url, names, 200, performance.now() + Number(values['mixed-ms']))
const metrics = await (await fetch(`${box.url}/metrics`)).text()
const loads = [...metrics.matchAll(/^edgeshift_variant_loads\{.*\} (\d+)$/gm)].reduce(
  (sum, [, n]) => sum + Number(n),
  0,
)
console.log(
  `200 clients of ${names.join(', ')} over HTTP with memory for two rungs: ${latencies.length} requests, ${loads} loads, ` +
    `p50 ${percentile(latencies, 0.5).toFixed(0)} ms, p99 ${percentile(latencies, 0.99).toFixed(0)} ms, longest ${Math.max(...latencies).toFixed(0)} ms; ` +
    [...outcomes].map(([outcome, count]) => `${outcome} ${count}`).join(', '),
)
await box.close()
