/** Whole responses on the raw Node response; the one place where an error gets its HTTP form. */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { Logger } from 'pino'
import { type GatewayError, toGatewayError } from '../errors.js'
import type { Exchange } from './context.js'

/** Sends a text and ends the response; nothing when the client has gone. */
export function sendText(
  outgoing: ServerResponse,
  status: number,
  text: string,
  headers: OutgoingHttpHeaders = {},
): void {
  if (outgoing.destroyed || outgoing.headersSent) return
  const length = Buffer.byteLength(text)
  outgoing.writeHead(status, { 'content-type': 'application/json', 'content-length': length, ...headers })
  outgoing.end(text)
}

/** Notes an error on its exchange; what was not foreseen goes to the log with its cause. */
export function noteError(exchange: Exchange, thrown: unknown, log: Logger): GatewayError {
  const error = toGatewayError(thrown)
  exchange.error = error.code
  if (error.code === 'internal') log.error({ id: exchange.id, err: error.cause ?? error }, 'internal error')
  return error
}

/** Sends the OpenAI error object with the catalogue's status. A response that has begun is cut off instead. */
export function sendError(outgoing: ServerResponse, error: GatewayError): void {
  if (outgoing.headersSent && !outgoing.writableEnded) {
    outgoing.destroy()
    return
  }
  sendText(outgoing, error.httpStatus, JSON.stringify(error.toObject()), errorHeaders(error))
}

function errorHeaders({ code, retryAfterMs }: GatewayError): OutgoingHttpHeaders {
  if (code === 'unauthorized') return { 'www-authenticate': 'Bearer' }
  return retryAfterMs === undefined ? {} : { 'retry-after': String(Math.max(1, Math.ceil(retryAfterMs / 1000))) }
}

/** `text` as a header value: printable ASCII, at most 256 characters. */
export function headerValue(text: string): string {
  return text.slice(0, 256).replace(/[^\x20-\x7e]/g, '?')
}
