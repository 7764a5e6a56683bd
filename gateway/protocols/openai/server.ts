/** The Node server under the HTTP application. */
import { createServer, type Server, type ServerOptions, STATUS_CODES } from 'node:http'
import { createServer as createSecureServer } from 'node:https'
import type { Socket } from 'node:net'
import { getRequestListener } from '@hono/node-server'
import type { Hono } from 'hono'
import { GatewayError, toGatewayError } from '../../errors.js'
import type { HttpEnv } from '../../middleware/context.js'
import type { Tls } from '../../tls.js'
import { wantsWebSocket } from '../upgrade.js'

/** Bounds on how long a connection may take, milliseconds; none of them bounds an answer. */
export interface ServerTimes {
  /** Until a request's headers are complete. */
  headersMs: number
  /** Until a request's body is complete. */
  requestMs: number
  /** Idle between two requests. */
  keepAliveMs: number
  /** How often the first two are looked at. */
  checkMs: number
}

/** Longer than the idle time of common proxies, so that they close first. */
export const SERVER_TIMES: ServerTimes = { headersMs: 10_000, requestMs: 60_000, keepAliveMs: 75_000, checkMs: 5_000 }

/** A server for `app`, not listening yet; HTTPS with `tls`. WebSocket attaches to its `upgrade` event; the caller closes it. */
export function createHttpServer(app: Hono<HttpEnv>, tls?: Tls, times: ServerTimes = SERVER_TIMES): Server {
  const listener = getRequestListener((request, env) => app.fetch(request, env), {
    overrideGlobalObjects: false,
    errorHandler: refuse,
  })
  const options = {
    headersTimeout: times.headersMs,
    requestTimeout: times.requestMs,
    keepAliveTimeout: times.keepAliveMs,
    connectionsCheckingInterval: times.checkMs,
    noDelay: true,
    // Another protocol that a client offers, as Java's does with every request, is not an answer's condition. Since
    // Node 22.21 and 24.9; not in @types/node yet.
    shouldUpgradeCallback: wantsWebSocket,
  }
  const server = tls ? secureServer(tls, options, times) : createServer(options)
  server.on('request', (incoming, outgoing) => void listener(incoming, outgoing))
  server.on('clientError', refuseConnection)
  return server
}

function secureServer(tls: Tls, options: ServerOptions, { headersMs }: ServerTimes): Server {
  const server = createSecureServer({ ...options, ...tls.pair, handshakeTimeout: headersMs })
  tls.onChange((pair) => server.setSecureContext(pair))
  return server
}

/** What fails before the application sees it is a request that has no valid URL. */
function refuse(thrown: unknown): Response {
  const error =
    thrown instanceof Error && thrown.name === 'RequestError'
      ? new GatewayError('invalid_request', `the request line or host header is not valid: ${thrown.message}`)
      : toGatewayError(thrown)
  return Response.json(error.toObject(), { status: error.httpStatus })
}

/** Bytes that are not HTTP, headers that are too long, requests that never end. */
function refuseConnection(problem: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || problem.code === 'ECONNRESET') {
    socket.destroy()
    return
  }
  const error = connectionError(problem)
  const status = `${error.httpStatus} ${STATUS_CODES[error.httpStatus] ?? ''}`
  const json = JSON.stringify(error.toObject())
  const head = `HTTP/1.1 ${status}\r\ncontent-type: application/json\r\nconnection: close\r\n`
  socket.end(`${head}content-length: ${Buffer.byteLength(json)}\r\n\r\n${json}`, () => socket.destroy())
}

function connectionError({ code }: NodeJS.ErrnoException): GatewayError {
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') {
    return new GatewayError('deadline_exceeded', 'the request was not complete in time')
  }
  if (code === 'HPE_HEADER_OVERFLOW') return new GatewayError('body_too_large', 'the request headers are too large')
  return new GatewayError('invalid_request', 'the request is not valid HTTP')
}
