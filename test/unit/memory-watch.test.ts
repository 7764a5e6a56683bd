/** The ledgers of CPU devices against what the process holds, with a measure that the test plays. */
import { afterEach, describe, expect, it } from 'vitest'
import { MemoryWatch } from '../../engine/residency/memory-watch.js'
import { fakeEngine } from '../support/fake-engine.js'
import { watchedDevice } from '../support/watched-device.js'

const watches: MemoryWatch[] = []
afterEach(() => {
  for (const watch of watches.splice(0)) watch.close()
})

/** A watched device in a process that holds `memory.anonymousBytes`, 10,000 at its start. */
function watched() {
  const { engine, device, lines } = watchedDevice()
  const memory = { anonymousBytes: 10_000, scriptBytes: 3000 }
  const watch = new MemoryWatch(engine, () => memory)
  watches.push(watch)
  return { engine, device, lines, memory, watch }
}

describe('MemoryWatch', () => {
  it('raises an alarm where the process grew by more than the ledger and its overhead say, and takes it back', () => {
    const { device, lines, memory, watch } = watched()
    device.ledger.add('weights', 'm', 300)
    const seen = [10_300, 11_300, 11_301, 10_250].map((bytes) => {
      memory.anonymousBytes = bytes
      watch.check()
      return `${device.drift?.measuredBytes} ${device.drift?.driftBytes} ${device.drift?.alarm}`
    })
    expect(seen).toEqual(['300 0 false', '1300 1000 false', '1301 1001 true', '250 -50 false'])
    expect(lines).toEqual(['the process holds more memory than the ledger', 'memory and ledger agree again'])
  })

  it('counts what is held for a device that was opened later', () => {
    const { engine, device, lines, memory, watch } = watched()
    const { device: later } = fakeEngine()
    engine.devices.push(later)
    later.ledger.add('weights', 'm', 5000)
    memory.anonymousBytes += 5000
    watch.check()
    const agrees = { measuredBytes: 5000, driftBytes: 0, alarm: false }
    expect([device.drift, later.drift, lines]).toEqual([agrees, agrees, []])
  })
})
