/** The HTTP API on a port of its own, over any services. */
import { once } from 'node:events'
import { createHttpApp, STREAM_TIMES } from '../../gateway/protocols/openai/app.js'
import { createHttpServer, SERVER_TIMES } from '../../gateway/protocols/openai/server.js'
import type { Services } from '../../gateway/services.js'
import type { Tls } from '../../gateway/tls.js'

/** A server that listens. */
export interface TestServer {
  /** "http://127.0.0.1:PORT", no slash at the end. */
  url: string
  port: number
  close(): Promise<void>
}

/** Serves on a free port; times that a test does not give are those of production. */
export async function serveHttp(
  services: Services,
  times: Partial<typeof STREAM_TIMES & typeof SERVER_TIMES> = {},
  tls?: Tls,
): Promise<TestServer> {
  const app = createHttpApp(services, { ...STREAM_TIMES, ...times })
  const server = createHttpServer(app, tls, { ...SERVER_TIMES, ...times })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('not listening on TCP')
  const { port } = address
  const close = async (): Promise<void> => {
    const closed = once(server, 'close')
    server.close()
    server.closeAllConnections()
    await closed
  }
  return { url: `http${tls ? 's' : ''}://127.0.0.1:${port}`, port, close }
}
