import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { CHAT, chatBody, failure, httpBox } from '../support/http-box.js'
import { keyedServices } from '../support/keyed-services.js'
import { rawConnection, rawPost } from '../support/raw-http.js'

const box = httpBox()

describe('a request body', () => {
  it.each<[string, string | Buffer, number, string, RegExp]>([
    ['malformed JSON', '{"model": ', 400, 'invalid_request', /not valid JSON/],
    ['no JSON object', '[]', 400, 'invalid_request', /must be a JSON object/],
    ['no body', '', 400, 'invalid_request', /empty/],
    ['broken UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d]), 400, 'invalid_request', /UTF-8/],
    ['deep nesting', `{"a":${'['.repeat(20_000)}${']'.repeat(20_000)}}`, 400, 'invalid_request', /deeper than 67/],
    ['too many bytes', chatBody({ user: 'x'.repeat(70_000) }), 413, 'body_too_large', /65536 bytes/],
  ])('with %s is refused', async (_name, content, status, code, message) => {
    const answered = await box.post(CHAT, content)
    expect(answered).toMatchObject({ status, json: failure(code) })
    expect(JSON.stringify(answered.json)).toMatch(message)
    expect(box.services.generator.runs).toHaveLength(0)
  })

  it('without a length is cut off at the limit', async () => {
    const { socket, until } = await rawConnection(box.server.port)
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
    const answered = await box.post(CHAT, chatBody(), headers)
    expect(answered).toMatchObject({ status: 415, json: failure('unsupported_media_type') })
    expect(JSON.stringify(answered.json)).toMatch(message)
  })

  it('may name a charset and carry duplicate keys', async () => {
    const content = chatBody().replace('{', '{"n":3,"n":1,')
    expect((await box.post(CHAT, content, { 'content-type': 'application/json; charset=utf-8' })).status).toBe(200)
  })
})

describe('routes', () => {
  it('unknown and wrongly used ones get the OpenAI error object', async () => {
    const unknown = await fetch(`${box.server.url}/v1/nothing`)
    expect(unknown.status).toBe(404)
    expect(await unknown.json()).toEqual(failure('not_found'))
    const wrong = await fetch(box.server.url + CHAT)
    expect(wrong.status).toBe(405)
    expect(wrong.headers.get('allow')).toBe('POST')
    expect(await wrong.json()).toEqual(failure('method_not_allowed'))
  })

  it('/health is 503 until the box serves', async () => {
    const statuses = { ok: 200, degraded: 200, loading: 503, draining: 503 } as const
    for (const status of ['ok', 'degraded', 'loading', 'draining'] as const) {
      box.services.report = { status, models: {} }
      const response = await fetch(`${box.server.url}/health`)
      expect([response.status, await response.json()]).toEqual([statuses[status], { status, models: {} }])
    }
  })

  it('/tokenize and /detokenize are inverse', async () => {
    const { json } = await box.post('/tokenize', '{"model":"fake","prompt":"ab"}')
    expect(json).toEqual({ tokens: [97, 98], count: 2, max_model_len: 128 })
    expect((await box.post('/detokenize', '{"model":"fake","tokens":[97,98]}')).json).toEqual({ prompt: 'ab' })
    expect(await box.post('/detokenize', '{"model":"fake","tokens":[-1]}')).toMatchObject({
      status: 400,
      json: failure('invalid_request', 'tokens[0]'),
    })
  })

  it('/metrics counts exchanges by route, never by path', async () => {
    await fetch(`${box.server.url}/v1/models/${'x'.repeat(30)}`).then((response) => response.text())
    const text = await fetch(`${box.server.url}/metrics`).then((response) => response.text())
    expect(text).toMatch(/edgeshift_http_requests_total\{route="\/v1\/models\/:id",status="404"\} 1/)
    expect(text).not.toContain('xxx')
  })
})

describe('headers', () => {
  it('say what served and under which id', async () => {
    const { headers } = await box.post(CHAT, chatBody(), { 'x-request-id': 'mine' })
    expect(headers.get('x-edgeshift-variant')).toBe('fake:int4')
    expect(headers.get('x-edgeshift-reason')).toBe('only rung')
    expect(headers.get('x-request-id')).toBe(box.services.generator.runs[0]?.request.id)
    expect(headers.get('x-request-id')).toMatch(/^req-/)
  })

  it('carry trace, priority, deadline and tenant into the request', async () => {
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    await box.post(CHAT, chatBody(), {
      traceparent,
      'x-edgeshift-priority': '-2',
      'x-edgeshift-deadline-ms': '1500',
      authorization: 'Bearer key-1',
    })
    await box.post(CHAT, chatBody({ priority: 4 }), { traceparent: `${traceparent}-x`, 'x-edgeshift-priority': '1' })
    const [first, second] = box.services.generator.runs.map(({ request }) => request)
    expect(first).toMatchObject({ traceparent, priority: -2, deadlineMs: 1500 })
    expect(first?.tenant).toMatch(/^[0-9a-f]{16}$/)
    expect(second).toMatchObject({ priority: 4, deadlineMs: 0, tenant: '' })
    expect(second?.traceparent).toBeUndefined()
  })

  it.each(['x-edgeshift-priority', 'x-edgeshift-deadline-ms'])('%s must be a number', async (name) => {
    expect(await box.post(CHAT, chatBody(), { [name]: 'soon' })).toMatchObject({
      status: 400,
      json: failure('invalid_request', name),
    })
  })

  it('tell when to retry', async () => {
    box.services.generator.script = (run) => run.fail(new GatewayError('queue_full', 'full', { retryAfterMs: 1 }))
    const answered = await box.post(CHAT, chatBody({ stream: true }))
    expect(answered).toMatchObject({ status: 429, json: failure('queue_full') })
    expect(answered.headers.get('retry-after')).toBe('1')
  })
})

describe('a request', () => {
  /** Status of a chat with these headers, in bytes: fetch lets nobody set a host. */
  const chatAs = async (headers: Record<string, string>): Promise<string> => {
    const { socket, until } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody(), headers))
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
    expect(box.services.generator.runs).toHaveLength(status === '200' ? 1 : 0)
  })

  it('with a key comes by any name: a page has no key unless it was given one', async () => {
    await box.server.close()
    const keyed = keyedServices({ n: {} })
    await box.serve(keyed)
    const page = { ...REBOUND, origin: 'https://evil.example' }
    expect(await chatAs(page)).toBe('401 unauthorized')
    expect(await chatAs({ ...page, authorization: `Bearer ${keyed.keys['n']}` })).toBe('200')
  })

  it.each(['/health', '/metrics', '/v1/models', '/admin/models', '/openapi.json'])(
    'of a rebound page for %s is refused',
    async (path) => {
      const { socket, until } = await rawConnection(box.server.port)
      socket.write(`GET ${path} HTTP/1.1\r\nhost: evil.example\r\n\r\n`)
      expect(await until(/\}$/)).toMatch(/^HTTP\/1\.1 403 /)
      socket.destroy()
    },
  )
})

describe('an unforeseen failure', () => {
  it('is told as internal, without its text', async () => {
    box.services.generator.generate = () => {
      throw new Error('secret')
    }
    const answered = await box.post(CHAT, chatBody())
    expect(answered).toMatchObject({ status: 500, json: failure('internal') })
    expect(JSON.stringify(answered.json)).not.toContain('secret')
  })
})

describe('the log', () => {
  it("has the exchange and the client's id, cleaned, but no prompt", async () => {
    const lines: string[] = []
    box.services.log = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) })
    await box.server.close()
    box.services.metrics.clear()
    await box.serve(box.services)
    const messages = [{ role: 'user', content: 'secret' }]
    const { headers } = await box.post(CHAT, chatBody({ messages }), { 'x-request-id': `a b${'c'.repeat(100)}` })
    await box.post(`${CHAT}?q=secret`, '{"secret')
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
