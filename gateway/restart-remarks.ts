import { isDeepStrictEqual } from 'node:util'
import { type Config, type Finding, locateRemarks } from '../engine/config/index.js'

/** Of `server`, what is opened once. Everything else of it follows an edit. */
const OPENED_ONCE = ['http', 'grpc', 'engines', 'api_keys_file', 'tls_cert', 'tls_key'] as const

/** What of `server` differs from the start's configuration and waits for the next, one line each with its place in the text. Pure. */
export function restartRemarks(started: Config, next: Config, text: string, file: string): string[] {
  const edited = OPENED_ONCE.filter((key) => !isDeepStrictEqual(started.server[key], next.server[key]))
  const remarks = edited.map((key) => ({
    path: ['server', key],
    message: 'takes effect at the next start; until then the old one is used',
  }))
  return locateRemarks(text, file, [...remarks, ...newDevices(started, next)])
}

/** A device that comes to those with an engine of their own has none before the next start. */
function newDevices({ server, devices: started }: Config, { devices }: Config): Finding[] {
  if (server.engines === 'shared') return []
  return devices.flatMap(({ id }, index) =>
    started.some((device) => device.id === id)
      ? []
      : [{ path: ['devices', index], message: `${id} gets its engine at the next start` }],
  )
}
