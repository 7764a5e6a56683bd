import { isDeepStrictEqual } from 'node:util'
import { type Config, locateRemarks } from '../engine/config/index.js'

/** Of `server`, what is opened once. Everything else of it follows an edit. */
const OPENED_ONCE = ['http', 'grpc', 'api_keys_file', 'tls_cert', 'tls_key'] as const

/** Edits of `server` that wait for the next start, one line each with its place in the new text. Pure. */
export function restartRemarks(old: Config, next: Config, text: string, file: string): string[] {
  const edited = OPENED_ONCE.filter((key) => !isDeepStrictEqual(old.server[key], next.server[key]))
  const remarks = edited.map((key) => ({
    path: ['server', key],
    message: 'takes effect at the next start; until then the old one is used',
  }))
  return locateRemarks(text, file, remarks)
}
