/** What one routing decision takes: `npm run bench:route -- [models] [devices] [decisions]` (50, 8, 20000 by default). */
import { decisionTimes, FORMS, manyModels } from '../support/route-load.js'

const [models = 50, devices = 8, decisions = 20_000] = process.argv.slice(2).map(Number)
const box = manyModels(models, devices)
const at = (times: Float64Array, share: number): string =>
  (times[Math.floor(share * (times.length - 1))] ?? 0).toFixed(1).padStart(6)

console.log(`${models} models of 3 rungs on ${devices} devices, ${decisions} decisions each, microseconds`)
console.log('p99 best of 3: of three decisions the fastest, so that what else the machine does is not counted')
for (const [name, form] of Object.entries(FORMS)) {
  const times = decisionTimes(box, form, decisions)
  const quiet = decisionTimes(box, form, decisions, 3)
  console.log(`${name.padEnd(10)} median ${at(times, 0.5)}  p99 ${at(times, 0.99)}  p99 best of 3 ${at(quiet, 0.99)}`)
}
