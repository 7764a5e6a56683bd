import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { answer, type FakeServices, fakeServices, hold } from '../support/fake-services.js'
import { keyedServices } from '../support/keyed-services.js'
import { serveHttp, type TestServer } from '../support/http-server.js'
import { rawConnection, rawPost } from '../support/raw-http.js'

const CHAT = '/v1/chat/completions'
const body = (fields: object = {}): string =>
  JSON.stringify({ model: 'fake', messages: [{ role: 'user', content: 'hi' }], ...fields })

let services: FakeServices
let server: TestServer

const restart = async (times: Parameters<typeof serveHttp>[1]): Promise<void> => {
  await server.close()
  services = fakeServices(answer('Hello', ' world'))
  server = await serveHttp(services, times)
}

/** Posts to `path`; status, headers and the parsed body. */
async function post(path: string, content: string | Buffer, headers: Record<string, string> = {}) {
  const response = await fetch(server.url + path, {
    method: 'POST',
    body: content,
    headers: { 'content-type': 'application/json', ...headers },
  })
  const json: unknown = await response.json()
  return { status: response.status, headers: response.headers, json }
}

const failure = (code: string, param: string | null = null) => ({ error: expect.objectContaining({ code, param }) })

beforeEach(async () => {
  services = fakeServices(answer('Hello', ' world'))
  server = await serveHttp(services)
})
afterEach(() => server.close())

describe('a request body', () => {
  it.each<[string, string | Buffer, number, string, RegExp]>([
    ['malformed JSON', '{"model": ', 400, 'invalid_request', /not valid JSON/],
    ['no JSON object', '[]', 400, 'invalid_request', /must be a JSON object/],
    ['no body', '', 400, 'invalid_request', /empty/],
    ['broken UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d]), 400, 'invalid_request', /UTF-8/],
    ['deep nesting', `{"a":${'['.repeat(20_000)}${']'.repeat(20_000)}}`, 400, 'invalid_request', /deeper than 67/],
    ['too many bytes', body({ user: 'x'.repeat(70_000) }), 413, 'body_too_large', /65536 bytes/],
  ])('with %s is refused', async (_name, content, status, code, message) => {
    const answered = await post(CHAT, content)
    expect(answered).toMatchObject({ status, json: failure(code) })
    expect(JSON.stringify(answered.json)).toMatch(message)
    expect(services.generator.runs).toHaveLength(0)
  })

  it('without a length is cut off at the limit', async () => {
    const { socket, until } = await rawConnection(server.port)
    const head = `POST ${CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n`
    socket.write(head)
    const chunk = `4000\r\n${' '.repeat(0x4000)}\r\n`
    for (let i = 0; i < 5; i++) socket.write(chunk)
    expect(await until(/body_too_large/)).toContain('HTTP/1.1 413')
    socket.destroy()
  })

  it.each<[string, Record<string, string>, RegExp]>([
    ['another media type', { 'content-type': 'text/plain' }, /content-type must be application\/json/],
    ['compression', { 'content-encoding': 'gzip' }, /content-encoding must be identity/],
  ])('with %s gets 415', async (_name, headers, message) => {
    const answered = await post(CHAT, body(), headers)
    expect(answered).toMatchObject({ status: 415, json: failure('unsupported_media_type') })
    expect(JSON.stringify(answered.json)).toMatch(message)
  })

  it('may name a charset and carry duplicate keys', async () => {
    const content = body().replace('{', '{"n":3,"n":1,')
    expect((await post(CHAT, content, { 'content-type': 'application/json; charset=utf-8' })).status).toBe(200)
  })
})

describe('routes', () => {
  it('unknown and wrongly used ones get the OpenAI error object', async () => {
    const unknown = await fetch(`${server.url}/v1/nothing`)
    expect(unknown.status).toBe(404)
    expect(await unknown.json()).toEqual(failure('not_found'))
    const wrong = await fetch(server.url + CHAT)
    expect(wrong.status).toBe(405)
    expect(wrong.headers.get('allow')).toBe('POST')
    expect(await wrong.json()).toEqual(failure('method_not_allowed'))
  })

  it('/health is 503 until the box serves', async () => {
    const statuses = { ok: 200, degraded: 200, loading: 503, draining: 503 } as const
    for (const status of ['ok', 'degraded', 'loading', 'draining'] as const) {
      services.report = { status, models: {} }
      const response = await fetch(`${server.url}/health`)
      expect([response.status, await response.json()]).toEqual([statuses[status], { status, models: {} }])
    }
  })

  it('/tokenize and /detokenize are inverse', async () => {
    const { json } = await post('/tokenize', '{"model":"fake","prompt":"ab"}')
    expect(json).toEqual({ tokens: [97, 98], count: 2, max_model_len: 128 })
    expect((await post('/detokenize', '{"model":"fake","tokens":[97,98]}')).json).toEqual({ prompt: 'ab' })
    expect(await post('/detokenize', '{"model":"fake","tokens":[-1]}')).toMatchObject({
      status: 400,
      json: failure('invalid_request', 'tokens[0]'),
    })
  })

  it('/metrics counts exchanges by route, never by path', async () => {
    await fetch(`${server.url}/v1/models/${'x'.repeat(30)}`).then((response) => response.text())
    const text = await fetch(`${server.url}/metrics`).then((response) => response.text())
    expect(text).toMatch(/edgeshift_http_requests_total\{route="\/v1\/models\/:id",status="404"\} 1/)
    expect(text).not.toContain('xxx')
  })
})

describe('headers', () => {
  it('say what served and under which id', async () => {
    const { headers } = await post(CHAT, body(), { 'x-request-id': 'mine' })
    expect(headers.get('x-edgeshift-variant')).toBe('fake:int4')
    expect(headers.get('x-edgeshift-reason')).toBe('only rung')
    expect(headers.get('x-request-id')).toBe(services.generator.runs[0]?.request.id)
    expect(headers.get('x-request-id')).toMatch(/^req-/)
  })

  it('carry trace, priority, deadline and tenant into the request', async () => {
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    await post(CHAT, body(), {
      traceparent,
      'x-edgeshift-priority': '-2',
      'x-edgeshift-deadline-ms': '1500',
      authorization: 'Bearer key-1',
    })
    await post(CHAT, body({ priority: 4 }), { traceparent: `${traceparent}-x`, 'x-edgeshift-priority': '1' })
    const [first, second] = services.generator.runs.map(({ request }) => request)
    expect(first).toMatchObject({ traceparent, priority: -2, deadlineMs: 1500 })
    expect(first?.tenant).toMatch(/^[0-9a-f]{16}$/)
    expect(second).toMatchObject({ priority: 4, deadlineMs: 0, tenant: '' })
    expect(second?.traceparent).toBeUndefined()
  })

  it.each(['x-edgeshift-priority', 'x-edgeshift-deadline-ms'])('%s must be a number', async (name) => {
    expect(await post(CHAT, body(), { [name]: 'soon' })).toMatchObject({
      status: 400,
      json: failure('invalid_request', name),
    })
  })

  it('tell when to retry', async () => {
    services.generator.script = (run) => run.fail(new GatewayError('queue_full', 'full', { retryAfterMs: 1 }))
    const answered = await post(CHAT, body({ stream: true }))
    expect(answered).toMatchObject({ status: 429, json: failure('queue_full') })
    expect(answered.headers.get('retry-after')).toBe('1')
  })
})

describe('a request', () => {
  /** Status of a chat with these headers, in bytes: fetch lets nobody set a host. */
  const chatAs = async (headers: Record<string, string>): Promise<string> => {
    const { socket, until } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body(), headers))
    const text = await until(/\}$/)
    socket.destroy()
    return /^HTTP\/1\.1 (\d+) [^]*?(?:"code":"(\w+)"|$)/.exec(text)?.slice(1).filter(Boolean).join(' ') ?? text
  }
  const REBOUND = { host: 'evil.example:8080' }

  it.each<[string, Record<string, string>, string]>([
    ['a program', {}, '200'],
    ['a program that names an address', { host: '192.0.2.7:8080' }, '200'],
    ['a container', { host: 'host.docker.internal:8080' }, '200'],
    ['a page of this machine', { origin: 'http://localhost:3000' }, '200'],
    ['a page of another machine', { origin: 'https://evil.example' }, '403 forbidden'],
    ['a page whose name was rebound', { ...REBOUND, origin: 'http://evil.example:8080' }, '403 forbidden'],
    ['such a page, of what it only reads', REBOUND, '403 forbidden'],
    ['a file', { origin: 'null' }, '403 forbidden'],
  ])('without keys of %s', async (_name, headers, status) => {
    expect(await chatAs(headers)).toBe(status)
    expect(services.generator.runs).toHaveLength(status === '200' ? 1 : 0)
  })

  it('with a key comes by any name: a page has no key unless it was given one', async () => {
    await server.close()
    const keyed = keyedServices({ n: {} })
    server = await serveHttp(keyed)
    const page = { ...REBOUND, origin: 'https://evil.example' }
    expect(await chatAs(page)).toBe('401 unauthorized')
    expect(await chatAs({ ...page, authorization: `Bearer ${keyed.keys['n']}` })).toBe('200')
  })

  it.each(['/health', '/metrics', '/v1/models', '/admin/models', '/openapi.json'])(
    'of a rebound page for %s is refused',
    async (path) => {
      const { socket, until } = await rawConnection(server.port)
      socket.write(`GET ${path} HTTP/1.1\r\nhost: evil.example\r\n\r\n`)
      expect(await until(/\}$/)).toMatch(/^HTTP\/1\.1 403 /)
      socket.destroy()
    },
  )
})

describe('an unforeseen failure', () => {
  it('is told as internal, without its text', async () => {
    services.generator.generate = () => {
      throw new Error('secret')
    }
    const answered = await post(CHAT, body())
    expect(answered).toMatchObject({ status: 500, json: failure('internal') })
    expect(JSON.stringify(answered.json)).not.toContain('secret')
  })
})

describe('a whole answer', () => {
  it('that cannot be encoded is an error of its request', async () => {
    services.generator.script = (run) => {
      run.start()
      // JSON has none.
      run.text('x', 0, [1n as unknown as number])
      run.finish()
    }
    const answered = await post(CHAT, body({ return_token_ids: true }))
    expect(answered).toMatchObject({ status: 500, json: failure('internal') })
  })

  it('is cut off when its reader stalls', async () => {
    await restart({ stallMs: 40 })
    services.generator.script = answer('x'.repeat(16 * 1024 * 1024))
    const { socket, closed } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body()))
    socket.pause()
    await (await services.generator.run(0)).until(({ ended }) => ended)
    const counted = /edgeshift_http_requests_total\{route="\/v1\/chat\/completions",status="499"\} 1/
    while (!counted.test(await services.metrics.metrics())) await new Promise((resolve) => setImmediate(resolve))
    socket.resume()
    expect((await closed).length).toBeLessThan(16 * 1024 * 1024)
  })
})

describe('the log', () => {
  it("has the exchange and the client's id, cleaned, but no prompt", async () => {
    const lines: string[] = []
    services.log = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) })
    await server.close()
    services.metrics.clear()
    server = await serveHttp(services)
    const messages = [{ role: 'user', content: 'secret' }]
    const { headers } = await post(CHAT, body({ messages }), { 'x-request-id': `a b${'c'.repeat(100)}` })
    await post(`${CHAT}?q=secret`, '{"secret')
    while (lines.length < 2) await new Promise((resolve) => setImmediate(resolve))
    expect(lines.map((line) => JSON.parse(line) as unknown)).toMatchObject([
      {
        id: headers.get('x-request-id'),
        route: CHAT,
        status: 200,
        variant: 'fake:int4',
        clientRequestId: `a?b${'c'.repeat(61)}`,
      },
      { route: CHAT, status: 400, error: 'invalid_request' },
    ])
    expect(lines.join('')).not.toContain('secret')
  })
})

describe('a stream', () => {
  it('is framed as server-sent events', async () => {
    const response = await fetch(server.url + CHAT, {
      method: 'POST',
      body: body({ stream: true }),
      headers: { 'content-type': 'application/json' },
    })
    expect(Object.fromEntries(response.headers)).toMatchObject({
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
      'x-edgeshift-variant': 'fake:int4',
    })
    const events = (await response.text()).split('\n\n')
    expect(events.pop()).toBe('')
    expect(events.pop()).toBe('data: [DONE]')
    expect(events.every((event) => /^data: \{[^\n]*\}$/.test(event))).toBe(true)
    expect(events.some((event) => event.includes('"usage"'))).toBe(false)
  })

  it('sends an error in-band once it has begun, and then no [DONE]', async () => {
    services.generator.script = (run) => {
      run.start()
      run.fail(new GatewayError('engine_failed', 'the engine died'))
    }
    const { socket, until } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body({ stream: true })))
    const text = await until(/0\r\n\r\n$/)
    expect(text).toContain('HTTP/1.1 200')
    expect(text).toContain('data: {"error":{"message":"the engine died"')
    expect(text).not.toContain('[DONE]')
    socket.destroy()
  })

  it('is kept alive by comments while it is silent', async () => {
    await restart({ pingMs: 20 })
    services.generator.script = (run) => run.start()
    const { socket, until } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body({ stream: true })))
    expect(await until(/: ping\n\n[^]*: ping\n\n/)).not.toContain('[DONE]')
    socket.destroy()
    await (await services.generator.run(0)).until(({ cancelled }) => cancelled)
  })

  it('pauses the work while its reader lags and resumes it after', async () => {
    services.generator.script = hold
    const { socket, until } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body({ stream: true })))
    const run = await services.generator.run(0)
    run.start()
    await until(/assistant/)
    socket.pause()
    while (!run.paused) {
      run.text('x'.repeat(8192))
      await new Promise((resolve) => setImmediate(resolve))
    }
    socket.resume()
    await run.until(({ paused }) => !paused)
    run.finish()
    expect(await until(/\[DONE\]/)).toContain('"finish_reason":"stop"')
    socket.destroy()
  })

  it('is cut off and cancelled when its reader stalls', async () => {
    await restart({ stallMs: 40 })
    services.generator.script = hold
    const { socket, until } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body({ stream: true })))
    const run = await services.generator.run(0)
    run.start()
    await until(/assistant/)
    socket.pause()
    while (!run.paused) {
      run.text('x'.repeat(8192))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await run.until(({ cancelled }) => cancelled)
    expect(services.generator.active).toBe(0)
    socket.destroy()
  })

  it('takes a step of any size to a reader that keeps up, and what follows it', async () => {
    services.generator.script = hold
    const { socket, until, closed } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body({ stream: true }), { connection: 'close' }))
    const run = await services.generator.run(0)
    run.start()
    await until(/assistant/)
    run.text('x'.repeat(8_000_000))
    await run.until(({ paused, cancelled }) => paused || cancelled)
    run.text('last words')
    await run.until(({ paused, cancelled }) => !paused || cancelled)
    run.finish()
    const text = await closed
    expect(text).toContain('last words')
    expect(text).toContain('[DONE]')
    expect(text.length).toBeGreaterThan(8_000_000)
  })

  it('is cut off when the source does not heed the pause', async () => {
    services.generator.script = hold
    const { socket, until } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body({ stream: true })))
    const run = await services.generator.run(0)
    run.start()
    await until(/assistant/)
    socket.pause()
    while (!run.ended) {
      run.text('x'.repeat(65_536))
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(run.cancelled).toBe(true)
    socket.destroy()
  })

  it('is cancelled at once when the client goes', async () => {
    services.generator.script = (run) => run.start()
    for (let i = 0; i < 100; i++) {
      const { socket, until } = await rawConnection(server.port)
      socket.write(rawPost(CHAT, body({ stream: true })))
      await until(/assistant/)
      socket.destroy()
      const run = await services.generator.run(i)
      await run.until(({ cancelled }) => cancelled)
    }
    expect(await services.metrics.metrics()).toContain('{route="/v1/chat/completions",status="499"} 100')
    expect(services.generator.active).toBe(0)
  })
})

describe('a connection', () => {
  it('that stops in its headers is closed with 408', async () => {
    await restart({ headersMs: 30, requestMs: 30, checkMs: 10 })
    const { socket, closed } = await rawConnection(server.port)
    socket.write(`POST ${CHAT} HTTP/1.1\r\nhost: localhost\r\n`)
    const text = await closed
    expect(text).toContain('HTTP/1.1 408')
    expect(text).toContain('"code":"deadline_exceeded"')
  })

  it('that stops in its body is closed with 408', async () => {
    await restart({ headersMs: 30, requestMs: 30, checkMs: 10 })
    const { socket, closed } = await rawConnection(server.port)
    socket.write(rawPost(CHAT, body(), { 'content-length': '5000' }))
    expect(await closed).toContain('HTTP/1.1 408')
    expect(services.generator.runs).toHaveLength(0)
  })

  it('that does not speak HTTP is told so and closed', async () => {
    const { socket, closed } = await rawConnection(server.port)
    socket.write('hello there\r\n\r\n')
    expect(await closed).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n[^]*"code":"invalid_request"/)
  })

  it('with a bad host header is told so', async () => {
    const { socket, until } = await rawConnection(server.port)
    socket.write('GET /health HTTP/1.1\r\nhost: a b\r\n\r\n')
    expect(await until(/\}\}$/)).toContain('HTTP/1.1 400')
    socket.destroy()
  })

  it('serves one request after another', async () => {
    const { socket, until } = await rawConnection(server.port)
    socket.write(Buffer.concat([rawPost(CHAT, body()), rawPost(CHAT, body({ stream: true })), rawPost(CHAT, '{')]))
    const text = await until(/not valid JSON/)
    expect(text.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 200', 'HTTP/1.1 200', 'HTTP/1.1 400'])
    socket.destroy()
  })
})
