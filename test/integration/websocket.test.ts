import { randomBytes } from 'node:crypto'
import { createServer, type Server } from 'node:http'
import { connect, type Socket } from 'node:net'
import { WebSocket as UndiciSocket } from 'undici'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { WebSocket } from 'ws'
import { GatewayError } from '../../gateway/errors.js'
import { Listeners } from '../../gateway/listeners.js'
import { ChatSockets, type ChatSocketSettings } from '../../gateway/protocols/websocket/server.js'
import { answer, type FakeServices, fakeServices, hold } from '../support/fake-services.js'
import { rawConnection, rawPost } from '../support/raw-http.js'
import { ChatPeer, chatOverWebSocket, textOf } from '../support/websocket-clients.js'

/** Times that a loaded machine does not reach; tests of a time set their own. */
const SETTINGS: Partial<ChatSocketSettings> = { heartbeatMs: 60_000, closeMs: 5000, maxRunning: 3 }
/** This Node asks which offers of another protocol count. */
const ASKS_FOR_OFFERS = 'shouldUpgradeCallback' in createServer()
const messages = [{ role: 'user', content: 'hi' }]

let services: FakeServices
let http: Server
let sockets: ChatSockets
let port: number
let rawSockets: Socket[]

async function serve(settings: Partial<ChatSocketSettings> = {}): Promise<void> {
  services = fakeServices(answer('Hello', ' world'))
  http = createServer((_request, response) => response.writeHead(404).end())
  sockets = new ChatSockets(services, { ...SETTINGS, ...settings })
  sockets.attach(http)
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve))
  port = portOf(http)
  rawSockets = []
}

function portOf(server: Server): number {
  const address = server.address()
  if (typeof address !== 'object' || address === null) throw new Error('not listening on a port')
  return address.port
}

async function stop(): Promise<void> {
  for (const socket of rawSockets) socket.destroy()
  await sockets.close()
  await new Promise((resolve) => http.close(resolve))
}

const url = (): string => `ws://127.0.0.1:${port}/v1/chat/ws`

async function open(): Promise<ChatPeer> {
  const peer = new ChatPeer(new WebSocket(url()))
  await peer.opened
  return peer
}

/** A raw connection that has sent an upgrade request; `reply` is what came back first. */
async function raw(headers: string[] = [], path = '/v1/chat/ws'): Promise<{ socket: Socket; reply: string }> {
  const socket = connect(port, '127.0.0.1')
  rawSockets.push(socket)
  socket.on('error', () => undefined)
  const key = randomBytes(16).toString('base64')
  const handshake = [
    'Connection: Upgrade',
    'Upgrade: websocket',
    'Sec-WebSocket-Version: 13',
    `Sec-WebSocket-Key: ${key}`,
  ]
  socket.write(
    [`GET ${path} HTTP/1.1`, `Host: 127.0.0.1:${port}`, ...(headers.length > 0 ? headers : handshake), '', ''].join(
      '\r\n',
    ),
  )
  const reply = await new Promise<Buffer>((resolve) => socket.once('data', resolve))
  return { socket, reply: reply.toString() }
}

const upgradeOf = (...more: string[]): string[] => [
  'Connection: Upgrade',
  'Upgrade: websocket',
  'Sec-WebSocket-Version: 13',
  `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`,
  ...more,
]

beforeEach(() => serve())
afterEach(stop)

describe('chats', () => {
  it.each([
    ['ws', () => new WebSocket(url())],
    ["the browser's WebSocket", () => new UndiciSocket(url())],
  ])('answers %s', async (_name, connectTo) => {
    const peer = new ChatPeer(connectTo())
    expect(await chatOverWebSocket(peer, 'fake', 'hi')).toEqual({
      text: 'Hello world',
      variant: 'fake:int4',
      completionTokens: 2,
    })
    peer.socket.close(1000)
    expect(await peer.closed).toMatchObject({ code: 1000 })
  })

  it('sends started, deltas, finished and usage for every choice', async () => {
    const peer = await open()
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages, n: 2 })
    const got = await peer.whole('a')
    const kinds = ['started', 'delta', 'delta', 'delta', 'delta', 'finished', 'finished', 'usage']
    expect(got.map((message) => message.type)).toEqual(kinds)
    expect(got[0]).toMatchObject({ request_id: expect.stringMatching(/^req-/), reason: 'only rung' })
    expect([textOf(got, 0), textOf(got, 1)]).toEqual(['Hello world', 'Hello world'])
  })

  it('completes several prompts as one request', async () => {
    const peer = await open()
    peer.send({ type: 'completion', id: 'a', model: 'fake', prompt: ['x', 'y'], max_tokens: 5 })
    const got = await peer.whole('a')
    expect([textOf(got, 0), textOf(got, 1)]).toEqual(['Hello world', 'Hello world'])
    expect(got.at(-1)).toMatchObject({ usage: { prompt_tokens: 6, completion_tokens: 4, total_tokens: 10 } })
    expect(services.generator.runs.map((run) => run.request.input)).toEqual([
      { kind: 'text', text: 'x' },
      { kind: 'text', text: 'y' },
    ])
  })

  it('keeps concurrent chats apart and cancels one of them', async () => {
    services.generator.script = hold
    const peer = await open()
    for (const id of ['a', 'b', 'c']) peer.send({ type: 'chat', id, model: 'fake', messages })
    const runs = await Promise.all([0, 1, 2].map((index) => services.generator.run(index)))
    for (const run of runs) run.start()
    for (const part of ['1', '2', '3']) runs.forEach((run, index) => run.text(`${'abc'[index]}${part} `))
    peer.send({ type: 'cancel', id: 'b' })
    expect((await peer.whole('b')).at(-1)).toMatchObject({ type: 'error', error: { code: 'cancelled' } })
    runs[0]?.finish()
    runs[2]?.finish()
    expect(textOf(await peer.whole('a'))).toBe('a1 a2 a3 ')
    expect(textOf(await peer.whole('c'))).toBe('c1 c2 c3 ')
    expect(services.generator.active).toBe(0)
  })

  it('frees an id when its request has ended', async () => {
    const peer = await open()
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    await peer.whole('a')
    peer.send({ type: 'cancel', id: 'a' })
    peer.received.length = 0
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    expect(textOf(await peer.whole('a'))).toBe('Hello world')
  })
})

describe('refusals', () => {
  it.each<[string, object, string, string | null]>([
    ['unknown model', { type: 'chat', id: 'a', model: 'none', messages }, 'model_not_found', 'model'],
    ['bad field', { type: 'chat', id: 'a', model: 'fake', messages, temperature: 9 }, 'invalid_request', 'temperature'],
    ['unknown field', { type: 'chat', id: 'a', model: 'fake', messages, wat: 1 }, 'unsupported_parameter', 'wat'],
    ['stream', { type: 'chat', id: 'a', model: 'fake', messages, stream: true }, 'unsupported_parameter', 'stream'],
    ['no messages', { type: 'chat', id: 'a', model: 'fake' }, 'invalid_request', 'messages'],
    ['unknown type', { type: 'chatt', id: 'a' }, 'invalid_request', 'type'],
    ['cancel with more', { type: 'cancel', id: 'a', x: 1 }, 'unsupported_parameter', 'x'],
  ])('%s', async (_name, message, code, param) => {
    services.generator.script = (run) => run.fail(new GatewayError('model_not_found', 'no', { param: 'model' }))
    const peer = await open()
    peer.send(message)
    const got = await peer.find((one) => one.type === 'error')
    expect(got).toMatchObject({ id: 'a', error: { code, param } })
    peer.send({ type: 'ping' })
    await peer.find((one) => one.type === 'pong')
  })

  it.each([undefined, '', 'x'.repeat(65), 7, null])('id %j', async (id) => {
    const peer = await open()
    peer.send({ type: 'chat', id, model: 'fake', messages })
    expect(await peer.find((one) => one.type === 'error')).toMatchObject({ error: { param: 'id' } })
  })

  it('refuses a running id and too many requests, and lives on', async () => {
    services.generator.script = hold
    const peer = await open()
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    await services.generator.run(0)
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    expect(await peer.find((one) => one.type === 'error')).toMatchObject({ id: 'a', error: { param: 'id' } })
    for (const id of ['b', 'c', 'd']) peer.send({ type: 'chat', id, model: 'fake', messages })
    expect((await peer.whole('d')).at(-1)).toMatchObject({ error: { code: 'queue_full' } })
    expect(services.generator.active).toBe(3)
  })

  it('answers what is not JSON and closes after too much of it', async () => {
    const peer = await open()
    for (let i = 0; i < 9; i++) peer.socket.send(i % 2 === 0 ? '{"type":' : '[1]')
    peer.send({ type: 'ping' })
    await peer.find((one) => one.type === 'pong')
    for (let i = 0; i < 10; i++) peer.socket.send('nope')
    expect(await peer.closed).toMatchObject({ code: 1008 })
    expect(peer.received.filter((one) => one.type === 'error')).toHaveLength(19)
  })

  it('refuses binary and oversize messages', async () => {
    const binary = new WebSocket(url())
    const first = new ChatPeer(binary)
    await first.opened
    binary.send(Buffer.from('{"type":"ping"}'))
    expect(await first.closed).toMatchObject({ code: 1003 })
    const second = await open()
    second.send({ type: 'chat', id: 'a', model: 'fake', messages: [{ role: 'user', content: 'x'.repeat(70_000) }] })
    expect(await second.closed).toMatchObject({ code: 1009 })
  })

  it.each([
    ['unmasked frame', Buffer.from([0x81, 0x01, 0x7b])],
    ['reserved bits', Buffer.from([0xf1, 0x80, 0, 0, 0, 0])],
    ['reserved opcode', Buffer.from([0x83, 0x80, 0, 0, 0, 0])],
    ['broken UTF-8', Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28])],
    ['absurd length', Buffer.from([0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])],
  ])('survives a malformed frame: %s', async (_name, frame) => {
    services.generator.script = hold
    const { socket, reply } = await raw()
    expect(reply).toContain('101 Switching Protocols')
    const gone = new Promise((resolve) => socket.on('close', resolve))
    socket.write(frame)
    await gone
    await vi.waitFor(() => expect(sockets.size).toBe(0))
    services.generator.script = answer('fine')
    expect(await chatOverWebSocket(await open(), 'fake', 'hi')).toMatchObject({ text: 'fine' })
  })
})

describe('upgrades', () => {
  it.each([
    ['another path', upgradeOf(), '/v1/other', 404],
    ['another protocol', ['Connection: Upgrade', 'Upgrade: h2c'], '/v1/chat/ws', 400],
    ['no key', ['Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13'], '/v1/chat/ws', 400],
    ['a foreign page', upgradeOf('Origin: https://evil.example'), '/v1/chat/ws', 403],
    ['a rebound name', upgradeOf('Origin: http://evil.example'), '/v1/chat/ws', 403],
    ['a bad priority', upgradeOf('X-Edgeshift-Priority: high'), '/v1/chat/ws', 400],
  ])('refuses %s', async (_name, headers, path, status) => {
    const { socket, reply } = await raw(headers, path)
    expect(reply).toMatch(new RegExp(`^HTTP/1.1 ${status} `))
    expect(JSON.parse(reply.split('\r\n\r\n')[1] ?? '')).toHaveProperty('error.code')
    socket.destroy()
  })

  it('that another protocol is offered with does not matter, or is told how to do without (Node before 22.21)', async () => {
    const any = { host: '127.0.0.1', port: 0 }
    const listeners = await Listeners.open(fakeServices(answer('Hello')), any, any)
    const { socket, until } = await rawConnection(listeners.http.port)
    const offer = { connection: 'Upgrade, HTTP2-Settings', upgrade: 'h2c', 'http2-settings': 'AAEAAEAA' }
    socket.write(rawPost('/v1/chat/completions', JSON.stringify({ model: 'fake', messages }), offer))
    const reply = await until(/\}$/)
    socket.destroy()
    await listeners.close(0)
    expect(reply).toMatch(
      ASKS_FOR_OFFERS ? /^HTTP\/1.1 200 [^]*"content":"Hello"/ : /^HTTP\/1.1 400 [^]*use plain HTTP\/1.1/,
    )
  })

  it('lets loopback pages and configured ones in', async () => {
    expect((await raw(upgradeOf('Origin: http://localhost:3000'))).reply).toContain('101')
    await stop()
    await serve({ allowedOrigins: ['https://chat.example'] })
    expect((await raw(upgradeOf('Origin: https://chat.example'))).reply).toContain('101')
  })

  it('bounds the sockets', async () => {
    await stop()
    await serve({ maxSockets: 1 })
    await open()
    expect((await raw(upgradeOf())).reply).toMatch(/^HTTP\/1.1 429 [^]*Retry-After: 60/)
  })
})

describe('ends', () => {
  it('cancels the requests of a socket that closes or breaks', async () => {
    services.generator.script = hold
    for (const leave of [(one: WebSocket) => one.close(), (one: WebSocket) => one.terminate()]) {
      const socket = new WebSocket(url())
      const peer = new ChatPeer(socket)
      await peer.opened
      const next = services.generator.runs.length
      peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
      const run = await services.generator.run(next)
      leave(socket)
      await run.until((one) => one.cancelled)
    }
    expect(services.generator.active).toBe(0)
  })

  it('drops peers that do not answer pings', async () => {
    await stop()
    await serve({ heartbeatMs: 20 })
    const { socket } = await raw()
    await new Promise((resolve) => socket.on('close', resolve))
    await vi.waitFor(() => expect(sockets.size).toBe(0))
  })

  it('closes idle sockets', async () => {
    await stop()
    await serve({ idleMs: 30, heartbeatMs: 10 })
    expect(await (await open()).closed).toEqual({ code: 1000, reason: 'idle' })
  })

  it('answers protocol pings', async () => {
    const socket = new WebSocket(url())
    await new Promise((resolve) => socket.on('open', resolve))
    const pong = new Promise((resolve) => socket.on('pong', resolve))
    socket.ping('here')
    expect(String(await pong)).toBe('here')
    socket.close()
  })

  it('pauses the requests of a slow reader and resumes them', async () => {
    services.generator.script = hold
    const socket = new WebSocket(url())
    const peer = new ChatPeer(socket)
    await peer.opened
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    const run = await services.generator.run(0)
    expect(run.request.whole).toBe(false)
    run.start()
    socket.pause()
    let sent = 0
    while (!run.paused) {
      run.text('x'.repeat(4096))
      sent += 4096
      await new Promise((resolve) => setImmediate(resolve))
    }
    peer.socket.send(JSON.stringify({ type: 'chat', id: 'b', model: 'fake', messages }))
    const late = await services.generator.run(1)
    await late.until((one) => one.paused)
    socket.resume()
    await run.until((one) => !one.paused)
    await late.until((one) => !one.paused)
    run.finish()
    expect(textOf(await peer.whole('a'))).toHaveLength(sent)
  })

  it('gives up on a reader that has stalled', async () => {
    await stop()
    await serve({ heartbeatMs: 20, stallMs: 60, closeMs: 100 })
    services.generator.script = hold
    const socket = new WebSocket(url())
    const peer = new ChatPeer(socket)
    await peer.opened
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    const run = await services.generator.run(0)
    run.start()
    socket.pause()
    while (!run.cancelled) {
      if (!run.paused) run.text('x'.repeat(4096))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await vi.waitFor(() => expect(sockets.size).toBe(0))
    socket.terminate()
  })

  it('sends a step of any size to a reader that keeps up, and what follows it', async () => {
    services.generator.script = hold
    const peer = await open()
    peer.send({ type: 'completion', id: 'a', model: 'fake', prompt: 'x', echo: true, n: 4 })
    const run = await services.generator.run(0)
    run.start()
    for (let index = 0; index < 4; index++) run.text('x'.repeat(3_000_000), index)
    expect(run.paused).toBe(true)
    await new Promise((resolve) => setImmediate(resolve))
    for (let index = 0; index < 4; index++) run.text('y', index)
    await run.until(({ paused, cancelled }) => !paused || cancelled)
    run.finish()
    const answers = await Promise.race([peer.whole('a'), peer.closed.then(({ reason }) => reason)])
    if (typeof answers === 'string') throw new Error(answers)
    for (let index = 0; index < 4; index++) expect(textOf(answers, index)).toHaveLength(3_000_001)
  })

  it('gives up on a queue that grows although it is paused', async () => {
    services.generator.script = hold
    const socket = new WebSocket(url())
    const peer = new ChatPeer(socket)
    await peer.opened
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    const run = await services.generator.run(0)
    run.start()
    socket.pause()
    while (!run.paused) {
      run.text('x'.repeat(4096))
      await new Promise((resolve) => setImmediate(resolve))
    }
    let late = 0
    while (!run.cancelled) {
      run.text('x'.repeat(4096))
      late += 4096
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(late).toBeGreaterThan(1_000_000)
    socket.resume()
    expect(await peer.closed).toMatchObject({ code: 1013 })
  })

  it('lets requests end when it shuts down, refuses new ones, closes with 1001', async () => {
    services.generator.script = hold
    const [busy, idle] = [await open(), await open()]
    busy.send({ type: 'chat', id: 'a', model: 'fake', messages })
    const run = await services.generator.run(0)
    const closed = sockets.close(10_000)
    expect(await idle.closed).toMatchObject({ code: 1001 })
    busy.send({ type: 'chat', id: 'b', model: 'fake', messages })
    expect((await busy.whole('b')).at(-1)).toMatchObject({ error: { code: 'shutting_down' } })
    expect((await raw(upgradeOf())).reply).toContain('503')
    run.start()
    run.text('bye')
    run.finish()
    expect(textOf(await busy.whole('a'))).toBe('bye')
    expect(await busy.closed).toMatchObject({ code: 1001 })
    await closed
  })

  it('leaves nothing behind after 1,000 connects and aborts', async () => {
    services.generator.script = hold
    const before = process.getActiveResourcesInfo().length
    for (let batch = 0; batch < 20; batch++) {
      await Promise.all(
        Array.from({ length: 50 }, async (_, i) => {
          if (i % 2 === 0) {
            const { socket } = await raw()
            socket.destroy()
            return
          }
          const socket = new WebSocket(url())
          const peer = new ChatPeer(socket)
          await peer.opened
          peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
          socket.terminate()
          await peer.closed
        }),
      )
    }
    await vi.waitFor(() => expect([sockets.size, services.generator.active]).toEqual([0, 0]))
    await vi.waitFor(() => expect(process.getActiveResourcesInfo().length).toBeLessThanOrEqual(before + 2))
  })
})
