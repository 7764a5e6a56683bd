/**
 * Every golden checkpoint through the registry and the CPU backend: one line for each rung with the largest error of a
 * logit, as a share of the logits' standard deviation. `npx tsx test/bench/checkpoints.ts`
 */
import { readFileSync } from 'node:fs'
import { loadAddon } from '../../engine/addon.js'
import type { Precision } from '../../engine/native.js'
import { GOLDEN, goldenCard, goldenFolder, goldenRequest, logitErrors, logitTolerance } from '../support/golden.js'
import { cpuDevice } from '../support/native-model.js'

const device = loadAddon().openDevice({ ...cpuDevice, kvArenaBytes: 64 << 20 })
console.log('| checkpoint | written by | rung | largest error | tolerance |\n| --- | --- | --- | --- | --- |')
for (const name of GOLDEN) {
  const card = goldenCard(name)
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the fixture's own shape
  const { written_by: writer } = JSON.parse(readFileSync(`${goldenFolder(name)}/../expected.json`, 'utf8')) as {
    written_by: string
  }
  for (const precision of new Set<Precision>(['fp16', card.precision])) {
    // oxlint-disable-next-line no-await-in-loop -- one model at a time
    const model = await device.loadModel({ ...goldenRequest(name), precision })
    // oxlint-disable-next-line no-await-in-loop
    const errors = await logitErrors(model, name, card.spec)
    // oxlint-disable-next-line no-await-in-loop
    await model.unload()
    const worst = Math.max(...errors).toFixed(4)
    console.log(`| ${name} | ${writer} | ${precision} | ${worst} | ${logitTolerance(name, precision)} |`)
  }
}
await device.close()
