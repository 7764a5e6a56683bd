/**
 * Exits while a step waits for its masks:
 *   node --import tsx test/support/exit-beside-masks.ts
 * Never ends where the device's threads cannot be stopped then.
 */
import { loadAddon } from '../../engine/addon.js'
import { cpuDevice, greedyState, makeBatch, smollm2Request } from './native-model.js'
import { stories260kRequest } from './stories260k.js'

const device = loadAddon().openDevice(cpuDevice)
const model = await device.loadModel(stories260kRequest('int8'))
model.setSlot(0, greedyState([1]))
const step = model.step(makeBatch(model, [{ slot: 0, first: 0, tokens: [1], rows: [{ at: 0, mask: 0 }] }]))
step.catch(() => undefined)
// Takes far longer than the step's forward pass, on another thread.
await device.loadModel(smollm2Request('int4'))
console.log('waits')
process.exit(0)
