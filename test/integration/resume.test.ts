/** Streams that outlive their connection, by real clients of all three protocols on one box. */
import { type ClientReadableStream, credentials, Metadata, status } from '@grpc/grpc-js'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { WebSocket } from 'ws'
import { Listeners } from '../../gateway/listeners.js'
import { Streams } from '../../gateway/resume/streams.js'
import { GatewayClient, type GenerateEvent, GenerateOptions } from '../../proto/gen/edgeshift/v1/gateway.js'
import { type FakeRun, hold } from '../support/fake-services.js'
import { eventually } from '../support/gateway-process.js'
import { type KeyedServices, keyedServices } from '../support/keyed-services.js'
import { ChatPeer, type Named } from '../support/websocket-clients.js'

const messages = [{ role: 'user' as const, content: 'hi' }]
const PIECES = Array.from({ length: 12 }, (_, i) => `piece ${i}. `)
const WHOLE = PIECES.join('')
const GRACE_MS = 300

let services: KeyedServices
let listeners: Listeners
let grpc: GatewayClient
let peers: ChatPeer[]

beforeEach(async () => {
  services = keyedServices({ mine: {}, other: {} }, hold)
  services.streams = new Streams({ graceMs: 60_000, maxStreamBytes: 2 ** 20, maxBytes: 2 ** 24 })
  const any = { host: '127.0.0.1', port: 0 }
  listeners = await Listeners.open(services, any, any)
  grpc = new GatewayClient(`127.0.0.1:${listeners.grpc.port}`, credentials.createInsecure())
  peers = []
})
afterEach(async () => {
  for (const { socket } of peers) socket.close()
  grpc.close()
  await listeners.close(0)
})

const url = (path: string): string => `http://127.0.0.1:${listeners.http.port}${path}`
const bearer = (name = 'mine'): string => `Bearer ${services.keys[name]}`

/** What a client knows of a stream: what it read, and where it is. */
class Reading {
  text = ''
  id = ''
  after = 0
  ended = false
  error: unknown
  /** Every event that has a number, in order. */
  readonly numbers: number[] = []
}

/** A connection that can be lost. */
interface Connection {
  reading: Reading
  lose(): void
}

type Protocol = 'http' | 'grpc' | 'websocket'

/** Starts a stream with `from` absent; otherwise goes on where that reading is. */
const connect: Record<Protocol, (from?: Reading, key?: string) => Promise<Connection>> = {
  async http(from, key) {
    const abort = new AbortController()
    const headers = { authorization: bearer(key), 'content-type': 'application/json' }
    const place = from && from.after > 0 ? { 'last-event-id': `${from.id}:${from.after}` } : {}
    const response = await fetch(url(from ? `/v1/streams/${from.id}` : '/v1/chat/completions'), {
      ...(!from && {
        method: 'POST',
        body: JSON.stringify({ model: 'fake', messages, stream: true, resumable: true }),
      }),
      headers: { ...headers, ...place },
      signal: abort.signal,
    })
    const reading = copyOf(from)
    if (response.status !== 200) {
      reading.error = ((await response.json()) as { error: { code: string } }).error.code
      reading.ended = true
    } else void readEvents(response, reading).catch(() => undefined)
    return { reading, lose: () => abort.abort() }
  },
  async grpc(from, key) {
    const reading = copyOf(from)
    const metadata = new Metadata()
    metadata.set('authorization', bearer(key))
    const options = GenerateOptions.fromPartial({ resumable: true })
    const request = { model: 'fake', messages: [{ role: 'user', content: 'hi', name: '' }], options }
    const call = from ? grpc.resume({ id: from.id, after: from.after }, metadata) : grpc.chatStream(request, metadata)
    readCall(call, reading)
    return { reading, lose: () => call.cancel() }
  },
  async websocket(from, key) {
    const reading = copyOf(from)
    const socket = new WebSocket(`ws://127.0.0.1:${listeners.http.port}/v1/chat/ws`, {
      headers: { authorization: bearer(key) },
    })
    socket.addEventListener('message', ({ data }) =>
      readMessage(JSON.parse(typeof data === 'string' ? data : ''), reading),
    )
    const peer = new ChatPeer(socket)
    peers.push(peer)
    await peer.opened
    if (from) peer.send({ type: 'resume', id: 'b', request_id: from.id, after: from.after })
    else peer.send({ type: 'chat', id: 'a', model: 'fake', messages, resumable: true })
    return { reading, lose: () => socket.terminate() }
  },
}

function copyOf(from: Reading | undefined): Reading {
  return Object.assign(new Reading(), from && { text: from.text, id: from.id, after: from.after })
}

function note(reading: Reading, number: number): void {
  reading.after = number
  reading.numbers.push(number)
}

/** Reads server-sent events as EventSource does. */
async function readEvents(response: Response, reading: Reading): Promise<void> {
  let pending = ''
  const decoder = new TextDecoder()
  for await (const bytes of response.body ?? []) {
    const events = (pending + decoder.decode(bytes, { stream: true })).split('\n\n')
    pending = events.pop() ?? ''
    for (const event of events) {
      const data = /^data: (.*)$/m.exec(event)?.[1] ?? ''
      const [, id, number] = /^id: (\S+):(\d+)$/m.exec(event) ?? []
      if (data === '[DONE]') reading.ended = true
      else {
        const chunk = JSON.parse(data) as { choices?: { delta: { content?: string } }[]; error?: { code: string } }
        reading.text += chunk.choices?.[0]?.delta.content ?? ''
        if (chunk.error) reading.error = chunk.error.code
      }
      if (id === undefined) continue
      reading.id = id
      note(reading, Number(number))
    }
  }
  reading.ended = true
}

function readCall(call: ClientReadableStream<GenerateEvent>, reading: Reading): void {
  call.on('data', ({ kind, number }: GenerateEvent) => {
    if (kind?.$case === 'started') reading.id = kind.started.id
    if (kind?.$case === 'delta') reading.text += kind.delta.text
    note(reading, number)
  })
  call.on('error', (error) => (reading.error = 'code' in error ? error.code : error))
  call.on('status', () => (reading.ended = true))
}

function readMessage(message: Named, reading: Reading): void {
  if (message.type === 'error') reading.error = message.error.code
  if (message.type === 'started') reading.id = message.request_id
  if (message.type === 'delta') reading.text += message.text
  if ('event' in message && message.event !== undefined) note(reading, message.event)
  if (message.type === 'usage' || message.type === 'error') reading.ended = true
}

const PROTOCOLS: readonly Protocol[] = ['http', 'grpc', 'websocket']
const PAIRS = PROTOCOLS.flatMap((first) => PROTOCOLS.map((second): [Protocol, Protocol] => [first, second]))

/** A stream whose client has read `count` pieces. */
async function begun(protocol: Protocol, count: number): Promise<{ connection: Connection; run: FakeRun }> {
  const connecting = connect[protocol]()
  const run = await services.generator.run(services.generator.runs.length)
  run.start()
  for (const piece of PIECES.slice(0, count)) run.text(piece)
  const connection = await connecting
  const read = PIECES.slice(0, count).join('')
  await eventually(() => connection.reading.text === read && connection.reading.after === count + 1, 'the pieces come')
  return { connection, run }
}

describe.each(PAIRS)('a stream begun over %s and resumed over %s', (first, second) => {
  it('is whole: nothing missing, nothing twice, also what came while nobody read', async () => {
    const { connection, run } = await begun(first, 4)
    connection.lose()
    const record = services.streams.find(connection.reading.id, services.entries[0]?.id ?? '')
    await eventually(() => !record.attached, 'the loss is noticed')
    for (const piece of PIECES.slice(4, 8)) run.text(piece)
    expect(run.cancelled).toBe(false)

    const { reading } = await connect[second](connection.reading)
    await eventually(() => reading.text === PIECES.slice(0, 8).join(''), 'the rest so far')
    for (const piece of PIECES.slice(8)) run.text(piece)
    run.finish(12)
    await eventually(() => reading.ended, 'the end')
    expect([reading.text, reading.error]).toEqual([WHOLE, undefined])
    // SSE has no event for a usage that was not asked for.
    expect(reading.numbers.slice(0, 9)).toEqual([6, 7, 8, 9, 10, 11, 12, 13, 14])
  })

  it('is given to its own key only', async () => {
    const { connection, run } = await begun(first, 3)
    connection.lose()
    const { reading } = await connect[second](connection.reading, 'other')
    await eventually(() => reading.ended, 'the refusal')
    expect(reading.text).toBe(connection.reading.text)
    expect(reading.error).toBe(second === 'grpc' ? status.NOT_FOUND : 'stream_not_found')
    expect(run.ended).toBe(false)
  })
})

describe.each(PROTOCOLS)('over %s', (protocol) => {
  it('a stream that ended while nobody read can be read to its end, again and again', async () => {
    const { connection, run } = await begun(protocol, 2)
    connection.lose()
    for (const piece of PIECES.slice(2)) run.text(piece)
    run.finish(12)
    for (let time = 0; time < 2; time++) {
      const { reading } = await connect[protocol](connection.reading)
      await eventually(() => reading.ended, 'the end')
      expect([reading.text, reading.error]).toEqual([WHOLE, undefined])
    }
  })

  it('the connection that was thought lost ends when another one reads', async () => {
    const { connection, run } = await begun(protocol, 2)
    const second = await connect[protocol](connection.reading)
    await eventually(() => connection.reading.ended, 'the first connection ends')
    expect(connection.reading.error).toBe(protocol === 'grpc' ? status.CANCELLED : 'cancelled')
    for (const piece of PIECES.slice(2)) run.text(piece)
    run.finish(12)
    await eventually(() => second.reading.ended, 'the end')
    expect(second.reading.text).toBe(WHOLE)
  })

  it('a stream nobody comes back to stops costing after its grace', async () => {
    services.streams = new Streams({ graceMs: GRACE_MS, maxStreamBytes: 2 ** 20, maxBytes: 2 ** 24 })
    const { connection, run } = await begun(protocol, 2)
    connection.lose()
    await run.until(() => run.cancelled)
    await eventually(() => services.streams.size === 0, 'it is forgotten')
    expect(services.streams.bytes).toBe(0)
    const { reading } = await connect[protocol](connection.reading)
    await eventually(() => reading.ended, 'the refusal')
    expect(reading.error).toBe(protocol === 'grpc' ? status.NOT_FOUND : 'stream_not_found')
  })

  it('a place that has not been is refused', async () => {
    const { connection } = await begun(protocol, 2)
    const { reading } = await connect[protocol](Object.assign(copyOf(connection.reading), { after: 99 }))
    await eventually(() => reading.ended, 'the refusal')
    expect(reading.error).toBe(protocol === 'grpc' ? status.INVALID_ARGUMENT : 'invalid_request')
    expect(connection.reading.ended).toBe(false)
  })
})

describe('HTTP', () => {
  it('gives the rest to a client that sends its request again with Last-Event-ID', async () => {
    const { connection, run } = await begun('http', 3)
    connection.lose()
    run.text('rest')
    run.finish(4)
    const response = await fetch(url('/v1/chat/completions'), {
      method: 'POST',
      body: JSON.stringify({ model: 'fake', messages, stream: true, resumable: true }),
      headers: {
        authorization: bearer(),
        'content-type': 'application/json',
        'last-event-id': `${connection.reading.id}:${connection.reading.after}`,
      },
    })
    const events = await response.text()
    expect(events).toContain('"content":"rest"')
    expect(events).not.toContain('"role"')
    expect(events.endsWith('data: [DONE]\n\n')).toBe(true)
    expect(services.generator.runs).toHaveLength(1)
  })

  it('keeps id, time and rung of the answer', async () => {
    const { connection, run } = await begun('http', 1)
    run.finish(1)
    const response = await fetch(url(`/v1/streams/${connection.reading.id}`), { headers: { authorization: bearer() } })
    expect(response.headers.get('x-edgeshift-variant')).toBe('fake:int4')
    const first = JSON.parse(/^data: (.*)$/m.exec(await response.text())?.[1] ?? '')
    expect(first).toMatchObject({ id: `chatcmpl-${connection.reading.id.slice(4)}`, model: 'fake:int4' })
  })

  it('ends a stream on demand', async () => {
    const { connection, run } = await begun('http', 1)
    const path = url(`/v1/streams/${connection.reading.id}`)
    const other = await fetch(path, { method: 'DELETE', headers: { authorization: bearer('other') } })
    expect([other.status, run.ended]).toEqual([404, false])
    const own = await fetch(path, { method: 'DELETE', headers: { authorization: bearer() } })
    expect([own.status, run.cancelled]).toEqual([204, true])
  })

  it('refuses resumable where nothing streams, and places that are none', async () => {
    const post = (fields: object, headers = {}): Promise<Response> =>
      fetch(url('/v1/chat/completions'), {
        method: 'POST',
        body: JSON.stringify({ model: 'fake', messages, ...fields }),
        headers: { authorization: bearer(), 'content-type': 'application/json', ...headers },
      })
    expect((await post({ resumable: true })).status).toBe(400)
    expect((await post({ stream: true }, { 'last-event-id': '7' })).status).toBe(400)
  })

  it('still cancels what is not resumable as soon as its client is gone', async () => {
    const abort = new AbortController()
    const asked = fetch(url('/v1/chat/completions'), {
      method: 'POST',
      body: JSON.stringify({ model: 'fake', messages, stream: true }),
      headers: { authorization: bearer(), 'content-type': 'application/json' },
      signal: abort.signal,
    })
    const run = await services.generator.run(0)
    run.start()
    await asked
    abort.abort()
    await run.until(() => run.cancelled)
    expect(services.streams.size).toBe(0)
  })
})

it('a WebSocket cancel ends a resumable stream at once', async () => {
  const { connection, run } = await begun('websocket', 1)
  peers[0]?.send({ type: 'cancel', id: 'a' })
  await eventually(() => connection.reading.ended, 'the end')
  expect([run.cancelled, connection.reading.error]).toEqual([true, 'cancelled'])
})

it('a unary gRPC call refuses resumable', async () => {
  const metadata = new Metadata()
  metadata.set('authorization', bearer())
  const options = GenerateOptions.fromPartial({ resumable: true })
  const request = { model: 'fake', messages: [{ role: 'user', content: 'hi', name: '' }], options }
  const code = await new Promise((resolve) => grpc.chat(request, metadata, (error) => resolve(error?.code)))
  expect(code).toBe(status.INVALID_ARGUMENT)
})
