/** The same fake services behind the HTTP API, gRPC and a WebSocket, for what must be alike over all three. */
import { createServer } from 'node:http'
import { WebSocket } from 'ws'
import { GrpcServer } from '../../gateway/protocols/grpc/server.js'
import { ChatSockets } from '../../gateway/protocols/websocket/server.js'
import type { FakeServices } from './fake-services.js'
import { GrpcPeer } from './grpc-clients.js'
import { serveHttp } from './http-server.js'
import { ChatPeer } from './websocket-clients.js'

/** One client of each protocol; `url` is where the HTTP API is served. */
export interface ThreeProtocols {
  url: string
  peer: GrpcPeer
  socket: ChatPeer
  close: () => Promise<void>
}

/** Serves `services` on free ports and connects the clients. */
export async function serveThreeProtocols(services: FakeServices): Promise<ThreeProtocols> {
  const http = await serveHttp(services)
  const grpc = await GrpcServer.listen(services, '127.0.0.1:0')
  const peer = new GrpcPeer(`127.0.0.1:${grpc.port}`)
  const upgrades = createServer()
  const sockets = new ChatSockets(services, { closeMs: 2000 })
  sockets.attach(upgrades)
  await new Promise<void>((resolve) => upgrades.listen(0, '127.0.0.1', resolve))
  const address = upgrades.address()
  const port = typeof address === 'object' ? address?.port : 0
  const socket = new ChatPeer(new WebSocket(`ws://127.0.0.1:${port}/v1/chat/ws`))
  await socket.opened
  const close = async (): Promise<void> => {
    peer.close()
    await Promise.all([http.close(), grpc.close(), sockets.close()])
    await new Promise((resolve) => upgrades.close(resolve))
  }
  return { url: http.url, peer, socket, close }
}
