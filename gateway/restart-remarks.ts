import { isDeepStrictEqual } from 'node:util'
import { type Config, locateRemarks } from '../engine/config/index.js'

/** Of `server`, what is opened once. Everything else of it follows an edit. */
const OPENED_ONCE = ['http', 'grpc', 'api_keys_file', 'tls_cert', 'tls_key'] as const

/** What of `server` differs from the start's configuration and waits for the next, one line each with its place in the text. Pure. */
export function restartRemarks(started: Config, next: Config, text: string, file: string): string[] {
  const edited = OPENED_ONCE.filter((key) => !isDeepStrictEqual(started.server[key], next.server[key]))
  const remarks = edited.map((key) => ({
    path: ['server', key],
    message: 'takes effect at the next start; until then the old one is used',
  }))
  return locateRemarks(text, file, remarks)
}
