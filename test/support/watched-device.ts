/** An engine with one device whose overhead is 1,000 bytes, for what watches its ledger, and the lines that it logs. */
import { pino } from 'pino'
import type { EngineDevice } from '../../engine/device.js'
import { Engine } from '../../engine/engine.js'
import { fakeEngine } from './fake-engine.js'

/** `lines`: the messages of the log so far. */
export function watchedDevice(): { engine: Engine; device: EngineDevice; lines: string[] } {
  const lines: string[] = []
  const log = pino({}, { write: (line: string) => void lines.push(String(JSON.parse(line).msg)) })
  const { device } = fakeEngine()
  const engine = new Engine({ version: 'test', maxWaiting: 1, clock: () => 0, log })
  engine.devices.push(device)
  device.ledger.add('overhead', '', 1000)
  return { engine, device, lines }
}
