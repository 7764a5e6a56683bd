// The real engine, where the device that a file LOST_DEVICE in TMPDIR names fails every step and cannot be opened.
import { existsSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { loadAddon } from '../../engine/addon.js'
import type { DeviceOptions } from '../../engine/native.js'
import { withChanges, withLoads } from './wrapped-native.js'

/** Name of the file: it holds, as JSON, what the device is opened with that others are not. */
export const LOST_DEVICE = 'lost-device'

function isLost(options: DeviceOptions): boolean {
  const file = join(tmpdir(), LOST_DEVICE)
  if (!existsSync(file)) return false
  const named = JSON.parse(readFileSync(file, 'utf8')) as Partial<DeviceOptions>
  return isDeepStrictEqual({ ...options, ...named }, options)
}

/** What the addon says of a GPU that has gone. */
const lost = (): Error => Object.assign(new Error('unspecified launch failure'), { code: 'device_failed' })

/** Stands before every device of this process. */
function arm(): void {
  const addon = loadAddon()
  const open = addon.openDevice.bind(addon)
  addon.openDevice = (options) => {
    if (isLost(options)) throw lost()
    const device = open(options)
    return withLoads(device, async (request, packed) => {
      const model = await device.loadModel(request, packed)
      return withChanges(model, {
        step: (batch) => (isLost(options) ? Promise.reject(lost()) : model.step(batch)),
      })
    })
  }
}

if (import.meta.filename === process.argv[1]) {
  arm()
  await import('../../engine/main.js')
}
