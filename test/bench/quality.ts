/**
 * The embedded model against the reference, through HTTP: greedy matches and perplexity of each rung.
 * `npm run bench:quality -- [windows] [--write] [--kv fp8|int8] [rung...]` (20 windows and all rungs by default; some
 * minutes). --write: each rung as it is measured, into the file beside the model that its card is read from. --kv: with
 * keys and values cached as that.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { qualityFileOf } from '../../engine/registry/index.js'
import { GatewayProcess } from '../support/gateway-process.js'
import { compareGreedy, greedyRows, perplexity } from '../support/quality.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'

const RUNGS = ['fp16', 'int8', 'int4']
const windows = Number(process.argv[2] ?? 20)
const chosen = RUNGS.filter((rung) => process.argv.includes(rung))
const file = qualityFileOf(SMOLLM2_FILE)

/** Puts one rung's entry into the file, in the order of the ladder. */
function write(rung: string, entry: object): void {
  const before = existsSync(file)
    ? (JSON.parse(readFileSync(file, 'utf8')) as { rungs: Record<string, object> })
    : undefined
  const all: Record<string, object> = { ...before?.rungs, [rung]: entry }
  const rungs = Object.fromEntries(RUNGS.flatMap((name) => (all[name] ? [[name, all[name]]] : [])))
  writeFileSync(file, `${JSON.stringify({ rungs }, null, 2)}\n`)
}

const kvCacheDtype = process.argv.includes('--kv') ? process.argv[process.argv.indexOf('--kv') + 1] : 'auto'
const box = await GatewayProcess.startShipped(
  (config) => `${config}\nscheduler: { kv_cache_dtype: ${kvCacheDtype} }\n`,
).ready()
try {
  for (const rung of chosen.length > 0 ? chosen : RUNGS) {
    const model = `smollm2:${rung}`
    const results = await Promise.all(greedyRows().map((row) => compareGreedy(box.url, model, row)))
    const margins = results.flatMap(({ margin }) => margin ?? [])
    const exact = results.length - margins.length
    console.log(
      `${model}: ${exact} of ${results.length} continuations exact, largest margin left ${margins.length > 0 ? Math.max(...margins) : 0}`,
    )
    const { measured, reference } = await perplexity(box.url, model, windows)
    const text = `WikiText-2, ${windows} windows`
    const entry = { perplexity: Number(measured.toFixed(4)), reference_perplexity: Number(reference.toFixed(4)), text }
    if (process.argv.includes('--write')) write(rung, entry)
    const off = ((measured / reference - 1) * 100).toFixed(3)
    console.log(
      `${model}: perplexity ${measured.toFixed(4)} over ${windows} windows, reference ${reference.toFixed(4)} (${off}%)`,
    )
  }
} finally {
  await box.close()
}
