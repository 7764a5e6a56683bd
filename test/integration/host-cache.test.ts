/** A model that comes back from the host's copy of its weights computes as one that is read from its files. */
import { describe, expect, it } from 'vitest'
import type { LoadRequest, NativeDevice } from '../../engine/native.js'
import { loadAddon } from '../../engine/addon.js'
import { generate, smollm2Request, testDevices } from '../support/native-model.js'

const PROMPT = [1, 504, 3575, 282, 4649, 314]
const request = smollm2Request('int4', 64)
/** The same files, read with other rotary frequencies, as after an edit of a checkpoint's configuration. */
const edited: LoadRequest = {
  ...request,
  spec: {
    ...request.spec,
    ropes: request.spec.ropes.map(({ table, ...rest }) => ({
      ...rest,
      table: { ...table, invFreq: table.invFreq.map((frequency) => frequency / 3) },
    })),
  },
}

/** A greedy text, and where the weights came from. */
async function text(device: NativeDevice, load: LoadRequest): Promise<{ tokens: number[]; origin: string }> {
  const model = await device.loadModel(load)
  try {
    return { tokens: await generate(model, PROMPT, 12), origin: model.origin }
  } finally {
    await model.unload()
  }
}

describe.each(testDevices())('on $name', ({ options, missing }) => {
  it.skipIf(missing)('has the weights back, unless they would be read in another way', async () => {
    const device = loadAddon().openDevice({ ...options, hostCacheBytes: 256 << 20 })
    const other = loadAddon().openDevice(options)
    try {
      const first = await text(device, request)
      const again = await text(device, request)
      expect([first.origin, again.origin]).toEqual(['files', options.kind === 'cuda' ? 'host_copy' : 'files'])
      expect(again.tokens).toEqual(first.tokens)
      const changed = await text(device, edited)
      expect(changed).toEqual(await text(other, edited))
      expect(changed.tokens).not.toEqual(first.tokens)
    } finally {
      await device.close()
      await other.close()
    }
  })
})
