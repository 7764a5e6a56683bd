/** The memory that a load takes on its way. */
import { expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import { measureLoad } from '../support/load-cost.js'
import { cpuDevice, smollm2Request } from '../support/native-model.js'

test.each(['fp16', 'int8', 'int4'] as const)(
  '%s: no more than the weights and a bounded staging buffer',
  async (rung) => {
    const device = loadAddon().openDevice({ ...cpuDevice, kvArenaBytes: 1 << 20 })
    const { weightBytes, workspaceBytes, peakBytes } = await measureLoad(device, smollm2Request(rung, 16))
    await device.close()
    expect(peakBytes).toBeLessThan(1.1 * weightBytes + workspaceBytes + 256 * 2 ** 20)
  },
)
