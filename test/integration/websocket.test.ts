import { WebSocket as UndiciSocket } from 'undici'
import { describe, expect, it, vi } from 'vitest'
import { WebSocket } from 'ws'
import { GatewayError } from '../../gateway/errors.js'
import { answer, hold } from '../support/fake-services.js'
import { chatOverWebSocket, ChatPeer, textOf } from '../support/websocket-clients.js'
import { webSocketBox } from '../support/websocket-box.js'

const messages = [{ role: 'user', content: 'hi' }]
const box = webSocketBox()

describe('chats', () => {
  it.each([
    ['ws', () => new WebSocket(box.url)],
    ["the browser's WebSocket", () => new UndiciSocket(box.url)],
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
    const peer = await box.open()
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages, n: 2 })
    const got = await peer.whole('a')
    const kinds = ['started', 'delta', 'delta', 'delta', 'delta', 'finished', 'finished', 'usage']
    expect(got.map((message) => message.type)).toEqual(kinds)
    expect(got[0]).toMatchObject({ request_id: expect.stringMatching(/^req-/), reason: 'only rung' })
    expect([textOf(got, 0), textOf(got, 1)]).toEqual(['Hello world', 'Hello world'])
  })

  it('completes several prompts as one request', async () => {
    const peer = await box.open()
    peer.send({ type: 'completion', id: 'a', model: 'fake', prompt: ['x', 'y'], max_tokens: 5 })
    const got = await peer.whole('a')
    expect([textOf(got, 0), textOf(got, 1)]).toEqual(['Hello world', 'Hello world'])
    expect(got.at(-1)).toMatchObject({ usage: { prompt_tokens: 6, completion_tokens: 4, total_tokens: 10 } })
    expect(box.services.generator.runs.map((run) => run.request.input)).toEqual([
      { kind: 'text', text: 'x' },
      { kind: 'text', text: 'y' },
    ])
  })

  it('keeps concurrent chats apart and cancels one of them', async () => {
    box.services.generator.script = hold
    const peer = await box.open()
    for (const id of ['a', 'b', 'c']) peer.send({ type: 'chat', id, model: 'fake', messages })
    const runs = await Promise.all([0, 1, 2].map((index) => box.services.generator.run(index)))
    for (const run of runs) run.start()
    for (const part of ['1', '2', '3']) runs.forEach((run, index) => run.text(`${'abc'[index]}${part} `))
    peer.send({ type: 'cancel', id: 'b' })
    expect((await peer.whole('b')).at(-1)).toMatchObject({ type: 'error', error: { code: 'cancelled' } })
    runs[0]?.finish()
    runs[2]?.finish()
    expect(textOf(await peer.whole('a'))).toBe('a1 a2 a3 ')
    expect(textOf(await peer.whole('c'))).toBe('c1 c2 c3 ')
    expect(box.services.generator.active).toBe(0)
  })

  it('frees an id when its request has ended', async () => {
    const peer = await box.open()
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
    box.services.generator.script = (run) => run.fail(new GatewayError('model_not_found', 'no', { param: 'model' }))
    const peer = await box.open()
    peer.send(message)
    const got = await peer.find((one) => one.type === 'error')
    expect(got).toMatchObject({ id: 'a', error: { code, param } })
    peer.send({ type: 'ping' })
    await peer.find((one) => one.type === 'pong')
  })

  it.each([undefined, '', 'x'.repeat(65), 7, null])('id %j', async (id) => {
    const peer = await box.open()
    peer.send({ type: 'chat', id, model: 'fake', messages })
    expect(await peer.find((one) => one.type === 'error')).toMatchObject({ error: { param: 'id' } })
  })

  it('refuses a running id and too many requests, and lives on', async () => {
    box.services.generator.script = hold
    const peer = await box.open()
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    await box.services.generator.run(0)
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    expect(await peer.find((one) => one.type === 'error')).toMatchObject({ id: 'a', error: { param: 'id' } })
    for (const id of ['b', 'c', 'd']) peer.send({ type: 'chat', id, model: 'fake', messages })
    expect((await peer.whole('d')).at(-1)).toMatchObject({ error: { code: 'queue_full' } })
    expect(box.services.generator.active).toBe(3)
  })

  it('answers what is not JSON and closes after too much of it', async () => {
    const peer = await box.open()
    for (let i = 0; i < 9; i++) peer.socket.send(i % 2 === 0 ? '{"type":' : '[1]')
    peer.send({ type: 'ping' })
    await peer.find((one) => one.type === 'pong')
    for (let i = 0; i < 10; i++) peer.socket.send('nope')
    expect(await peer.closed).toMatchObject({ code: 1008 })
    expect(peer.received.filter((one) => one.type === 'error')).toHaveLength(19)
  })

  it('refuses binary and oversize messages', async () => {
    const binary = new WebSocket(box.url)
    const first = new ChatPeer(binary)
    await first.opened
    binary.send(Buffer.from('{"type":"ping"}'))
    expect(await first.closed).toMatchObject({ code: 1003 })
    const second = await box.open()
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
    box.services.generator.script = hold
    const { socket, reply } = await box.raw()
    expect(reply).toContain('101 Switching Protocols')
    const gone = new Promise((resolve) => socket.on('close', resolve))
    socket.write(frame)
    await gone
    await vi.waitFor(() => expect(box.sockets.size).toBe(0))
    box.services.generator.script = answer('fine')
    expect(await chatOverWebSocket(await box.open(), 'fake', 'hi')).toMatchObject({ text: 'fine' })
  })
})
