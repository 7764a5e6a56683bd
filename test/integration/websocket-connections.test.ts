/** How WebSocket connections of chats begin, and how they end. */
import { createServer } from 'node:http'
import { describe, expect, it, vi } from 'vitest'
import { WebSocket } from 'ws'
import { Listeners } from '../../gateway/listeners.js'
import { answer, fakeServices, hold } from '../support/fake-services.js'
import { rawConnection, rawPost } from '../support/raw-http.js'
import { upgradeOf, webSocketBox } from '../support/websocket-box.js'
import { ChatPeer, textOf } from '../support/websocket-clients.js'

/** This Node asks which offers of another protocol count. */
const ASKS_FOR_OFFERS = 'shouldUpgradeCallback' in createServer()
const messages = [{ role: 'user', content: 'hi' }]
const box = webSocketBox()

describe('upgrades', () => {
  it.each([
    ['another path', upgradeOf(), '/v1/other', 404],
    ['another protocol', ['Connection: Upgrade', 'Upgrade: h2c'], '/v1/chat/ws', 400],
    ['no key', ['Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13'], '/v1/chat/ws', 400],
    ['a foreign page', upgradeOf('Origin: https://evil.example'), '/v1/chat/ws', 403],
    ['a rebound name', upgradeOf('Origin: http://evil.example'), '/v1/chat/ws', 403],
    ['a bad priority', upgradeOf('X-Edgeshift-Priority: high'), '/v1/chat/ws', 400],
  ])('refuses %s', async (_name, headers, path, status) => {
    const { socket, reply } = await box.raw(headers, path)
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
    expect((await box.raw(upgradeOf('Origin: http://localhost:3000'))).reply).toContain('101')
    await box.restart({ allowedOrigins: ['https://chat.example'] })
    expect((await box.raw(upgradeOf('Origin: https://chat.example'))).reply).toContain('101')
  })

  it('bounds the sockets', async () => {
    await box.restart({ maxSockets: 1 })
    await box.open()
    expect((await box.raw(upgradeOf())).reply).toMatch(/^HTTP\/1.1 429 [^]*Retry-After: 60/)
  })
})

describe('ends', () => {
  it('cancels the requests of a socket that closes or breaks', async () => {
    box.services.generator.script = hold
    for (const leave of [(one: WebSocket) => one.close(), (one: WebSocket) => one.terminate()]) {
      const socket = new WebSocket(box.url)
      const peer = new ChatPeer(socket)
      await peer.opened
      const next = box.services.generator.runs.length
      peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
      const run = await box.services.generator.run(next)
      leave(socket)
      await run.until((one) => one.cancelled)
    }
    expect(box.services.generator.active).toBe(0)
  })

  it('drops peers that do not answer pings', async () => {
    await box.restart({ heartbeatMs: 20 })
    const { socket } = await box.raw()
    await new Promise((resolve) => socket.on('close', resolve))
    await vi.waitFor(() => expect(box.sockets.size).toBe(0))
  })

  it('closes idle sockets', async () => {
    await box.restart({ idleMs: 30, heartbeatMs: 10 })
    expect(await (await box.open()).closed).toEqual({ code: 1000, reason: 'idle' })
  })

  it('answers protocol pings', async () => {
    const socket = new WebSocket(box.url)
    await new Promise((resolve) => socket.on('open', resolve))
    const pong = new Promise((resolve) => socket.on('pong', resolve))
    socket.ping('here')
    expect(String(await pong)).toBe('here')
    socket.close()
  })

  it('pauses the requests of a slow reader and resumes them', async () => {
    box.services.generator.script = hold
    const socket = new WebSocket(box.url)
    const peer = new ChatPeer(socket)
    await peer.opened
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    const run = await box.services.generator.run(0)
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
    const late = await box.services.generator.run(1)
    await late.until((one) => one.paused)
    socket.resume()
    await run.until((one) => !one.paused)
    await late.until((one) => !one.paused)
    run.finish()
    expect(textOf(await peer.whole('a'))).toHaveLength(sent)
  })

  it('gives up on a reader that has stalled', async () => {
    await box.restart({ heartbeatMs: 20, stallMs: 60, closeMs: 100 })
    box.services.generator.script = hold
    const socket = new WebSocket(box.url)
    const peer = new ChatPeer(socket)
    await peer.opened
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    const run = await box.services.generator.run(0)
    run.start()
    socket.pause()
    while (!run.cancelled) {
      if (!run.paused) run.text('x'.repeat(4096))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await vi.waitFor(() => expect(box.sockets.size).toBe(0))
    socket.terminate()
  })

  it('sends a step of any size to a reader that keeps up, and what follows it', async () => {
    box.services.generator.script = hold
    const peer = await box.open()
    peer.send({ type: 'completion', id: 'a', model: 'fake', prompt: 'x', echo: true, n: 4 })
    const run = await box.services.generator.run(0)
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
    box.services.generator.script = hold
    const socket = new WebSocket(box.url)
    const peer = new ChatPeer(socket)
    await peer.opened
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    const run = await box.services.generator.run(0)
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
    box.services.generator.script = hold
    const [busy, idle] = [await box.open(), await box.open()]
    busy.send({ type: 'chat', id: 'a', model: 'fake', messages })
    const run = await box.services.generator.run(0)
    const closed = box.sockets.close(10_000)
    expect(await idle.closed).toMatchObject({ code: 1001 })
    busy.send({ type: 'chat', id: 'b', model: 'fake', messages })
    expect((await busy.whole('b')).at(-1)).toMatchObject({ error: { code: 'shutting_down' } })
    expect((await box.raw(upgradeOf())).reply).toContain('503')
    run.start()
    run.text('bye')
    run.finish()
    expect(textOf(await busy.whole('a'))).toBe('bye')
    expect(await busy.closed).toMatchObject({ code: 1001 })
    await closed
  })

  it('leaves nothing behind after 1,000 connects and aborts', async () => {
    box.services.generator.script = hold
    const before = process.getActiveResourcesInfo().length
    for (let batch = 0; batch < 20; batch++) {
      await Promise.all(
        Array.from({ length: 50 }, async (_, i) => {
          if (i % 2 === 0) {
            const { socket } = await box.raw()
            socket.destroy()
            return
          }
          const socket = new WebSocket(box.url)
          const peer = new ChatPeer(socket)
          await peer.opened
          peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
          socket.terminate()
          await peer.closed
        }),
      )
    }
    await vi.waitFor(() => expect([box.sockets.size, box.services.generator.active]).toEqual([0, 0]))
    await vi.waitFor(() => expect(process.getActiveResourcesInfo().length).toBeLessThanOrEqual(before + 2))
  })
})
