// The libraries themselves, with nothing behind them: 100 streams of one event a token each, as fast as the readers take
// them, over node:http (SSE), grpc-js and ws. The events are the gateway's own: SSE_EVENT and WS_MESSAGE hold one each.
import { createServer } from 'node:http'
import { Server, ServerCredentials } from '@grpc/grpc-js'
import { WebSocketServer } from 'ws'
import { GatewayService, type GatewayServer } from '../../proto/gen/edgeshift/v1/gateway.js'

const { SSE_EVENT = '', WS_MESSAGE = '' } = process.env

/** Calls `write` of every stream once a turn of the loop, leaving out those that are full. */
class Fountain {
  private readonly streams = new Set<() => boolean>()
  private scheduled = false

  /** `write` returns false when the stream is full; call the result when it has drained. */
  add(write: () => boolean): { resume: () => void; stop: () => void } {
    const resume = (): void => {
      this.streams.add(write)
      this.schedule()
    }
    resume()
    return { resume, stop: () => this.streams.delete(write) }
  }

  private schedule(): void {
    if (this.scheduled) return
    this.scheduled = true
    setImmediate(() => {
      this.scheduled = false
      for (const write of this.streams) if (!write()) this.streams.delete(write)
      if (this.streams.size > 0) this.schedule()
    })
  }
}

const fountain = new Fountain()
const http = createServer((request, response) => {
  request.resume()
  response.writeHead(200, { 'content-type': 'text/event-stream' })
  const { resume, stop } = fountain.add(() => response.write(SSE_EVENT))
  response.on('drain', resume).on('close', stop)
})
new WebSocketServer({ server: http, perMessageDeflate: false }).on('connection', (socket) => {
  let running: ReturnType<Fountain['add']> | undefined
  const write = (): boolean => {
    socket.send(WS_MESSAGE, () => {
      if (socket.bufferedAmount === 0) running?.resume()
    })
    return socket.bufferedAmount < 65_536
  }
  socket.on('message', () => (running = fountain.add(write))).on('close', () => running?.stop())
})

const grpc = new Server()
const chatStream: GatewayServer['chatStream'] = (call) => {
  const delta = { index: 0, text: 'a', tokens: [100], logprobs: [] }
  const { resume, stop } = fountain.add(() => call.write({ kind: { $case: 'delta', delta }, number: 0 }))
  call.on('drain', resume).on('cancelled', stop).on('close', stop).on('error', stop)
}
grpc.addService(GatewayService, { chatStream })
grpc.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, grpcPort) => {
  if (error) throw error
  http.listen(0, '127.0.0.1', () => {
    const address = http.address()
    const port = typeof address === 'object' ? address?.port : 0
    console.log(`http ${port} grpc ${grpcPort} ready`)
  })
})
