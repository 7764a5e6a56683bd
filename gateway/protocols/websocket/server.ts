/** WebSocket chat on the HTTP server's upgrade event: who may connect, heartbeat, shutdown. */
import { type IncomingMessage, type Server, STATUS_CODES } from 'node:http'
import type { Duplex } from 'node:stream'
import { WebSocketServer } from 'ws'
import { GatewayError, toGatewayError } from '../../errors.js'
import type { Services } from '../../services.js'
import { bearerToken, readOrigin } from '../origin.js'
import { isOriginAllowed } from '../origin-policy.js'
import { wantsWebSocket } from '../upgrade.js'
import { chooseProtocol, keyOf } from './subprotocol.js'
import { Session, type SessionSettings } from './session.js'

/** Where chats are served. */
const CHAT_PATH = '/v1/chat/ws'

/** Bounds and times of the server; every one has a default. */
export interface ChatSocketSettings extends SessionSettings {
  maxSockets: number
  /** How often sockets are pinged and looked after; a dead peer is dropped after two of these. */
  heartbeatMs: number
  /** How long a peer may take to answer a close. */
  closeMs: number
  /** Web pages that may connect beside loopback ones and the server's own: origins, or "*". */
  allowedOrigins: readonly string[]
}

const DEFAULTS: ChatSocketSettings = {
  outbox: { highBytes: 64 * 1024, lowBytes: 16 * 1024, lateBytes: 1024 * 1024 },
  maxRunning: 32,
  maxBadMessages: 10,
  stallMs: 30_000,
  idleMs: 600_000,
  maxSockets: 4096,
  heartbeatMs: 15_000,
  closeMs: 2000,
  allowedOrigins: [],
}

/** All chat sockets of one HTTP server. Owns them, and one timer while there are any. */
export class ChatSockets {
  private readonly settings: ChatSocketSettings
  private readonly handshakes: WebSocketServer
  private readonly sessions = new Set<Session>()
  private timer: NodeJS.Timeout | undefined
  private draining = false
  private onEmpty: (() => void) | undefined

  constructor(
    private readonly services: Services,
    settings: Partial<ChatSocketSettings> = {},
  ) {
    this.settings = { ...DEFAULTS, ...settings }
    const options = {
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false,
      autoPong: false,
      handleProtocols: chooseProtocol,
      maxPayload: services.limits.maxBodyBytes,
      // Not in @types/ws yet.
      closeTimeout: this.settings.closeMs,
    }
    this.handshakes = new WebSocketServer(options)
    this.handshakes.on('wsClientError', (error, socket) =>
      refuseUpgrade(socket, new GatewayError('invalid_request', error.message)),
    )
  }

  /** Open sockets. */
  get size(): number {
    return this.sessions.size
  }

  /** Takes over every upgrade request of `server`. */
  attach(server: Server): void {
    server.on('upgrade', (request, socket, head) => this.upgrade(request, socket, head))
  }

  /** Lets running requests end for up to `graceMs`, then cancels them; every socket is closed with 1001. */
  async close(graceMs = 0): Promise<void> {
    this.draining = true
    for (const session of this.sessions) session.drain()
    const cut = setTimeout(() => this.sessions.forEach((session) => session.shutDown()), graceMs)
    const drop = setTimeout(
      () => this.sessions.forEach((session) => session.terminate()),
      graceMs + this.settings.closeMs,
    )
    if (this.sessions.size > 0) await new Promise<void>((resolve) => (this.onEmpty = resolve))
    clearTimeout(cut)
    clearTimeout(drop)
  }

  private upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    try {
      this.admit(request)
      const token = bearerToken(request.headers.authorization) ?? keyOf(headerOf(request, 'sec-websocket-protocol'))
      const { tenant } = this.services.access.admit(token)
      const origin = readOrigin((name) => headerOf(request, name), tenant)
      this.handshakes.handleUpgrade(request, socket, head, (webSocket) => {
        const session = new Session(webSocket, { ...origin, token }, this.services, this.settings, () =>
          this.remove(session),
        )
        this.add(session)
      })
    } catch (error) {
      refuseUpgrade(socket, toGatewayError(error))
    }
  }

  /** Throws unless the request may become a chat socket. */
  private admit(request: IncomingMessage): void {
    const { headers, socket } = request
    // Before Node 22.21 it is not asked which offers count, and has read no body that could be answered.
    if (!wantsWebSocket(request)) {
      throw new GatewayError('invalid_request', 'the only upgrade served is websocket; use plain HTTP/1.1')
    }
    const [path = ''] = (request.url ?? '').split('?', 1)
    if (path !== CHAT_PATH)
      throw new GatewayError('not_found', `no WebSocket is served here; chats are at ${CHAT_PATH}`)
    const facts = { origin: headers.origin, host: headers.host, localAddress: socket.localAddress }
    if (!isOriginAllowed(facts, this.settings.allowedOrigins)) {
      throw new GatewayError('forbidden', 'pages of this origin may not connect')
    }
    if (this.draining) throw new GatewayError('shutting_down', 'the server is shutting down')
    if (this.sessions.size >= this.settings.maxSockets) {
      throw new GatewayError('queue_full', 'too many open sockets', { retryAfterMs: this.settings.heartbeatMs })
    }
  }

  private add(session: Session): void {
    this.sessions.add(session)
    this.timer ??= setInterval(() => this.sweep(), this.settings.heartbeatMs).unref()
    if (this.draining) session.drain()
  }

  private remove(session: Session): void {
    this.sessions.delete(session)
    if (this.sessions.size > 0) return
    clearInterval(this.timer)
    this.timer = undefined
    this.onEmpty?.()
  }

  private sweep(): void {
    const now = performance.now()
    for (const session of this.sessions) session.sweep(now)
  }
}

function headerOf(request: IncomingMessage, name: string): string | undefined {
  const value = request.headers[name]
  return Array.isArray(value) ? value[0] : value
}

/** Answers an upgrade request with an HTTP error and closes the connection. */
function refuseUpgrade(socket: Duplex, error: GatewayError): void {
  const body = JSON.stringify(error.toObject())
  const headers = [
    `HTTP/1.1 ${error.httpStatus} ${STATUS_CODES[error.httpStatus] ?? 'Error'}`,
    'Content-Type: application/json',
    `Content-Length: ${Buffer.byteLength(body)}`,
    'Connection: close',
  ]
  if (error.retryAfterMs !== undefined) headers.push(`Retry-After: ${Math.ceil(error.retryAfterMs / 1000)}`)
  socket.on('error', () => socket.destroy())
  socket.once('finish', () => socket.destroy())
  socket.end(`${headers.join('\r\n')}\r\n\r\n${body}`)
}
