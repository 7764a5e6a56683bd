import type { Server } from 'node:http'
import type { Address } from '../engine/config/index.js'
import { GrpcServer } from './protocols/grpc/server.js'
import { createHttpApp } from './protocols/openai/app.js'
import { createHttpServer } from './protocols/openai/server.js'
import { ChatSockets } from './protocols/websocket/server.js'
import type { Services } from './services.js'
import type { Tls } from './tls.js'

/** An address cannot be listened on; the message is one line for a person. */
export class ListenError extends Error {
  constructor(protocol: string, address: Address, cause: unknown) {
    const message = cause instanceof Error ? cause.message : String(cause)
    const inUse = message.includes('EADDRINUSE')
    const why = inUse ? 'another program listens there already' : message
    super(`cannot serve ${protocol} on ${formatAddress(address)}: ${why}`, { cause })
    this.name = 'ListenError'
  }
}

/** How often connections that fell idle are closed at the end. */
const IDLE_SWEEP_MS = 50

/** "host:port", IPv6 hosts in brackets. */
export function formatAddress({ host, port }: Address): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** The listening servers of all protocols. */
export class Listeners {
  private constructor(
    private readonly httpServer: Server,
    private readonly sockets: ChatSockets,
    private readonly grpcServer: GrpcServer,
    /** As bound. */
    readonly http: Address,
    readonly grpc: Address,
  ) {}

  /** Listens on both addresses or on none. Throws ListenError. */
  static async open(services: Services, http: Address, grpc: Address, tls?: Tls): Promise<Listeners> {
    const httpServer = createHttpServer(createHttpApp(services), tls)
    const sockets = new ChatSockets(services)
    sockets.attach(httpServer)
    await listenHttp(httpServer, http)
    try {
      const bound = httpServer.address()
      const port = typeof bound === 'object' && bound !== null ? bound.port : http.port
      const grpcServer = await GrpcServer.listen(
        services,
        formatAddress(grpc),
        tls && { credentials: tls.grpcCredentials() },
      )
      return new Listeners(httpServer, sockets, grpcServer, { ...http, port }, { ...grpc, port: grpcServer.port })
    } catch (error) {
      httpServer.close()
      throw new ListenError('gRPC', grpc, error)
    }
  }

  /** Takes no connections any more, lets running answers end for up to `graceMs`, then cuts the rest. */
  async close(graceMs: number): Promise<void> {
    const cut = setTimeout(() => this.httpServer.closeAllConnections(), graceMs)
    await Promise.all([this.#closeHttp(), this.sockets.close(graceMs), this.grpcServer.close(graceMs)])
    clearTimeout(cut)
  }

  /** A connection that was answering is idle later, and then the server itself would wait for its client. */
  async #closeHttp(): Promise<void> {
    const sweep = setInterval(() => this.httpServer.closeIdleConnections(), IDLE_SWEEP_MS)
    await new Promise<void>((resolve) => {
      this.httpServer.close(() => resolve())
      this.httpServer.closeIdleConnections()
    })
    clearInterval(sweep)
  }
}

function listenHttp(server: Server, address: Address): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error) => reject(new ListenError('HTTP', address, error)))
    server.listen(address.port, address.host, () => resolve())
  })
}
