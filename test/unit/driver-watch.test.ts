/** A GPU's ledger against what its driver says, with a driver that the test plays. */
import { afterEach, describe, expect, it } from 'vitest'
import { DriverWatch } from '../../engine/residency/driver-watch.js'
import { watchedDevice } from '../support/watched-device.js'

const watches: DriverWatch[] = []
afterEach(() => {
  for (const watch of watches.splice(0)) watch.close()
})

/** A watched device whose driver says `used.bytes`: 10,000 with arena and context when it was opened. */
function watched() {
  const { engine, device, lines } = watchedDevice()
  device.ledger.add('context', '', 4000)
  const used: { bytes: number | Error; wait: Promise<void> } = { bytes: 10_000, wait: Promise.resolve() }
  const usedBytes = async (): Promise<number> => {
    await used.wait
    if (used.bytes instanceof Error) throw used.bytes
    return used.bytes
  }
  const watch = new DriverWatch(engine, device, { usedBytes })
  watches.push(watch)
  return { device, used, watch, lines }
}

describe('DriverWatch', () => {
  it('raises an alarm where more is in use than weights, workspaces and the overhead explain, and takes it back', async () => {
    const { device, used, watch, lines } = watched()
    await watch.check()
    const entries = [device.ledger.add('weights', 'm', 300), device.ledger.add('workspace', 'm', 100)]
    const seen: string[] = []
    for (const bytes of [10_400, 11_400, 11_401, 10_350]) {
      used.bytes = bytes
      await watch.check()
      seen.push(`${device.drift?.measuredBytes} ${device.drift?.driftBytes} ${device.drift?.alarm}`)
    }
    for (const entry of entries) device.ledger.release(entry)
    expect(seen).toEqual(['400 0 false', '1400 1000 false', '1401 1001 true', '350 -50 false'])
    expect(lines).toEqual(['more of the GPU is in use than the ledger says', 'memory and ledger agree again'])
  })

  it('says nothing of a moment at which the ledger moved, or its driver did not answer', async () => {
    const { device, used, watch } = watched()
    await watch.check()
    const before = device.drift
    let answer = (): void => {}
    used.wait = new Promise((resolve) => {
      answer = resolve
    })
    used.bytes = 50_000
    const checked = watch.check()
    const entry = device.ledger.add('weights', 'm', 300)
    answer()
    await checked
    used.bytes = new Error('the device is lost')
    await watch.check()
    device.ledger.release(entry)
    expect(device.drift).toEqual(before)
  })
})
