/**
 * The embedded model against the reference, through HTTP: greedy matches and perplexity of each rung.
 * `npm run bench:quality -- [windows] [--write] [--kv fp8|int8]` (20 by default; a few minutes). --write: into the file
 * beside the model that its card is read from. --kv: with keys and values cached as that.
 */
import { writeFileSync } from 'node:fs'
import { qualityFileOf } from '../../engine/registry/index.js'
import { GatewayProcess } from '../support/gateway-process.js'
import { compareGreedy, greedyRows, perplexity } from '../support/quality.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'

const windows = Number(process.argv[2] ?? 20)
const rungs: Record<string, object> = {}
const kvCacheDtype = process.argv.includes('--kv') ? process.argv[process.argv.indexOf('--kv') + 1] : 'auto'
const box = await GatewayProcess.startShipped(
  (config) => `${config}\nscheduler: { kv_cache_dtype: ${kvCacheDtype} }\n`,
).ready()
try {
  for (const rung of ['fp16', 'int8', 'int4']) {
    const model = `smollm2:${rung}`
    const results = await Promise.all(greedyRows().map((row) => compareGreedy(box.url, model, row)))
    const margins = results.flatMap(({ margin }) => margin ?? [])
    const exact = results.length - margins.length
    console.log(
      `${model}: ${exact} of ${results.length} continuations exact, largest margin left ${margins.length > 0 ? Math.max(...margins) : 0}`,
    )
    const { measured, reference } = await perplexity(box.url, model, windows)
    rungs[rung] = {
      perplexity: Number(measured.toFixed(4)),
      reference_perplexity: Number(reference.toFixed(4)),
      text: `WikiText-2, ${windows} windows`,
    }
    const off = ((measured / reference - 1) * 100).toFixed(3)
    console.log(
      `${model}: perplexity ${measured.toFixed(4)} over ${windows} windows, reference ${reference.toFixed(4)} (${off}%)`,
    )
  }
  if (process.argv.includes('--write')) {
    writeFileSync(qualityFileOf(SMOLLM2_FILE), `${JSON.stringify({ rungs }, null, 2)}\n`)
  }
} finally {
  await box.close()
}
