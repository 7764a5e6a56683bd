/** What one routing decision takes: `npm run bench:route -- [models] [devices] [decisions]` (50, 8, 20000 by default). */
import { decisionTimes, FORMS, manyModels } from '../support/route-load.js'

const [models = 50, devices = 8, decisions = 20_000] = process.argv.slice(2).map(Number)
const box = manyModels(models, devices)
console.log(`${models} models of 3 rungs on ${devices} devices, ${decisions} decisions each, microseconds`)
for (const [name, form] of Object.entries(FORMS)) {
  const times = decisionTimes(box, form, decisions)
  const at = (share: number): string => (times[Math.floor(share * (times.length - 1))] ?? 0).toFixed(1)
  console.log(
    `${name.padEnd(10)} median ${at(0.5).padStart(6)}  p99 ${at(0.99).padStart(6)}  p99.9 ${at(0.999).padStart(6)}`,
  )
}
