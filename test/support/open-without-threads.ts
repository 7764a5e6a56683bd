/**
 * Opens a device where fewer threads can be made than it needs, then where they can (no-thread.cpp):
 *   LD_PRELOAD=LIBRARY node --import tsx test/support/open-without-threads.ts
 * Prints how each ended.
 */
import type { DeviceOptions, NativeDevice } from '../../engine/native.js'
import { loadAddon } from '../../engine/addon.js'

const addon = loadAddon()
const options: DeviceOptions = { kind: 'cpu', index: 0, threads: 2, kvArenaBytes: 1 << 20 }
let device: NativeDevice | undefined
for (let threads = 0; device === undefined; threads++) {
  process.env.THREADS_LEFT = String(threads)
  try {
    device = addon.openDevice(options)
    console.log('opened')
  } catch (error) {
    console.log((error as { code?: string }).code)
  } finally {
    delete process.env.THREADS_LEFT
  }
}
await device.close()
