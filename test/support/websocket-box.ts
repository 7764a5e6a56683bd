/** WebSocket chats over fake services: a server of its own for each test of a file. */
import { randomBytes } from 'node:crypto'
import { createServer, type Server } from 'node:http'
import { connect, type Socket } from 'node:net'
import { afterEach, beforeEach } from 'vitest'
import { WebSocket } from 'ws'
import { ChatSockets, type ChatSocketSettings } from '../../gateway/protocols/websocket/server.js'
import { answer, type FakeServices, fakeServices } from './fake-services.js'
import { ChatPeer } from './websocket-clients.js'

/** Times that a loaded machine does not reach; tests of a time set their own. */
const SETTINGS: Partial<ChatSocketSettings> = { heartbeatMs: 60_000, closeMs: 5000, maxRunning: 3 }
const PATH = '/v1/chat/ws'

/** Headers of an upgrade, and more. */
export const upgradeOf = (...more: string[]): string[] => [
  'Connection: Upgrade',
  'Upgrade: websocket',
  'Sec-WebSocket-Version: 13',
  `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`,
  ...more,
]

/** What serves the test that runs now. */
export class WebSocketBox {
  services!: FakeServices
  sockets!: ChatSockets
  private http!: Server
  private raws: Socket[] = []

  get url(): string {
    return `ws://127.0.0.1:${portOf(this.http)}${PATH}`
  }

  async serve(settings: Partial<ChatSocketSettings> = {}): Promise<void> {
    this.services = fakeServices(answer('Hello', ' world'))
    this.http = createServer((_request, response) => response.writeHead(404).end())
    this.sockets = new ChatSockets(this.services, { ...SETTINGS, ...settings })
    this.sockets.attach(this.http)
    await new Promise<void>((resolve) => this.http.listen(0, '127.0.0.1', resolve))
    this.raws = []
  }

  async stop(): Promise<void> {
    for (const socket of this.raws) socket.destroy()
    await this.sockets.close()
    await new Promise((resolve) => this.http.close(resolve))
  }

  /** Begins anew with other settings. */
  async restart(settings: Partial<ChatSocketSettings>): Promise<void> {
    await this.stop()
    await this.serve(settings)
  }

  async open(): Promise<ChatPeer> {
    const peer = new ChatPeer(new WebSocket(this.url))
    await peer.opened
    return peer
  }

  /** A raw connection that has sent an upgrade request; `reply` is what came back first. */
  async raw(headers: string[] = upgradeOf(), path = PATH): Promise<{ socket: Socket; reply: string }> {
    const port = portOf(this.http)
    const socket = connect(port, '127.0.0.1')
    this.raws.push(socket)
    socket.on('error', () => undefined)
    socket.write([`GET ${path} HTTP/1.1`, `Host: 127.0.0.1:${port}`, ...headers, '', ''].join('\r\n'))
    const reply = await new Promise<Buffer>((resolve) => socket.once('data', resolve))
    return { socket, reply: reply.toString() }
  }
}

/** To be called once in a file. */
export function webSocketBox(): WebSocketBox {
  const box = new WebSocketBox()
  beforeEach(() => box.serve())
  afterEach(() => box.stop())
  return box
}

function portOf(server: Server): number {
  const address = server.address()
  if (typeof address !== 'object' || address === null) throw new Error('not listening on a port')
  return address.port
}
