// The real engine, where loads of the precisions that the file FAIL_LOADS names (one a line) fail.
import { existsSync, readFileSync } from 'node:fs'
import { loadAddon } from '../../engine/addon.js'
import { withLoads } from './wrapped-native.js'

function fails(precision: string): boolean {
  const file = process.env.FAIL_LOADS ?? ''
  return existsSync(file) && readFileSync(file, 'utf8').split('\n').includes(precision)
}

/** Stands before every load of this process. */
function arm(): void {
  const addon = loadAddon()
  const open = addon.openDevice.bind(addon)
  addon.openDevice = (options) => {
    const device = open(options)
    return withLoads(device, (request, packed) => {
      if (!fails(request.precision)) return device.loadModel(request, packed)
      return Promise.reject(Object.assign(new Error('this rung is to fail'), { code: 'io_error' }))
    })
  }
}

if (import.meta.filename === process.argv[1]) {
  arm()
  await import('../../engine/main.js')
}
