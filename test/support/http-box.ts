/** The HTTP API over fake services: a server of its own for each test of a file. */
import { afterEach, beforeEach, expect } from 'vitest'
import { answer, type FakeServices, fakeServices } from './fake-services.js'
import { serveHttp, type TestServer } from './http-server.js'

/** Path of chats. */
export const CHAT = '/v1/chat/completions'

/** The text of a chat's body. */
export const chatBody = (fields: object = {}): string =>
  JSON.stringify({ model: 'fake', messages: [{ role: 'user', content: 'hi' }], ...fields })

/** An error's body. */
export const failure = (code: string, param: string | null = null) => ({
  error: expect.objectContaining({ code, param }),
})

/** What serves the test that runs now. */
export interface HttpBox {
  services: FakeServices
  server: TestServer
  /** Serves what is given, once the server is closed. */
  serve(others: Parameters<typeof serveHttp>[0]): Promise<void>
  /** Begins anew with other times. */
  restart(times: Parameters<typeof serveHttp>[1]): Promise<void>
  /** Posts to `path`; status, headers and the parsed body. */
  post(
    path: string,
    content: string | Buffer,
    headers?: Record<string, string>,
  ): Promise<{ status: number; headers: Headers; json: unknown }>
}

/** To be called once in a file. */
export function httpBox(): HttpBox {
  let services: FakeServices
  let server: TestServer
  const start = async (times?: Parameters<typeof serveHttp>[1]): Promise<void> => {
    services = fakeServices(answer('Hello', ' world'))
    server = await serveHttp(services, times)
  }
  beforeEach(() => start())
  afterEach(() => server.close())
  return {
    get services() {
      return services
    },
    get server() {
      return server
    },
    serve: async (others) => {
      server = await serveHttp(others)
    },
    restart: async (times) => {
      await server.close()
      await start(times)
    },
    post: async (path, content, headers = {}) => {
      const response = await fetch(server.url + path, {
        method: 'POST',
        body: content,
        headers: { 'content-type': 'application/json', ...headers },
      })
      return { status: response.status, headers: response.headers, json: await response.json() }
    },
  }
}
