import type { IncomingMessage } from 'node:http'

/** True when a request asks for the one protocol that its connection can be upgraded to. */
export function wantsWebSocket({ headers }: IncomingMessage): boolean {
  return headers.upgrade?.toLowerCase() === 'websocket'
}
