/** API keys over the three protocols, by real clients. */
import { createServer, type Server } from 'node:http'
import { credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js'
import OpenAI, { AuthenticationError, PermissionDeniedError, RateLimitError } from 'openai'
import { WebSocket as UndiciSocket } from 'undici'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { WebSocket } from 'ws'
import { GrpcServer } from '../../gateway/protocols/grpc/server.js'
import { ChatSockets } from '../../gateway/protocols/websocket/server.js'
import { GatewayClient, type ListModelsResponse } from '../../proto/gen/edgeshift/v1/gateway.js'
import { GrpcPeer } from '../support/grpc-clients.js'
import { serveHttp, type TestServer } from '../support/http-server.js'
import { answer, hold } from '../support/fake-services.js'
import { type KeyedServices, keyedServices } from '../support/keyed-services.js'
import { ChatPeer, textOf } from '../support/websocket-clients.js'

const messages = [{ role: 'user' as const, content: 'hi' }]
const RIGHTS = {
  all: {},
  narrow: { models: ['other'] },
  slow: { requests_per_minute: 1 },
  boss: { admin: true },
  single: { max_concurrent: 1 },
  patient: { max_waiting: 1 },
}

let services: KeyedServices
beforeEach(() => {
  services = keyedServices(RIGHTS)
})

describe('HTTP', () => {
  let server: TestServer
  beforeEach(async () => {
    server = await serveHttp(services)
  })
  afterEach(() => server.close())

  const client = (apiKey = ''): OpenAI => new OpenAI({ apiKey, baseURL: `${server.url}/v1`, maxRetries: 0 })
  const get = (path: string, key?: string): Promise<Response> =>
    fetch(server.url + path, { headers: key === undefined ? {} : { authorization: `Bearer ${key}` } })

  it('serves a key and tells keys apart', async () => {
    for (const name of ['all', 'boss']) {
      const chat = await client(services.keys[name]).chat.completions.create({ model: 'fake', messages })
      expect(chat.choices[0]?.message.content).toBe('Hello world')
    }
    const tenants = services.generator.runs.map(({ request }) => request.tenant)
    expect(tenants).toEqual([services.entries[0]?.id, services.entries[3]?.id])
  })

  it('refuses a stranger before reading the body', async () => {
    const error = await client('es_no_key')
      .chat.completions.create({ model: 'fake', messages })
      .catch((e: unknown) => e)
    expect(error).toBeInstanceOf(AuthenticationError)
    expect(error).toMatchObject({ code: 'unauthorized', type: 'authentication_error' })
    const bare = await fetch(`${server.url}/v1/chat/completions`, { method: 'POST', body: 'not json' })
    expect([bare.status, bare.headers.get('www-authenticate')]).toEqual([401, 'Bearer'])
    for (const path of ['/v1/models', '/v1/models/fake', '/metrics']) expect((await get(path)).status).toBe(401)
    expect(services.generator.runs).toHaveLength(0)
  })

  it('lists and serves only the models of the key', async () => {
    const narrow = client(services.keys['narrow'])
    expect((await narrow.models.list()).data.map(({ id }) => id)).toEqual(['other'])
    await expect(narrow.models.retrieve('fake')).rejects.toBeInstanceOf(PermissionDeniedError)
    const refused = narrow.chat.completions.create({ model: 'fake', messages })
    await expect(refused).rejects.toMatchObject({ status: 403, code: 'forbidden', param: 'model' })
    const tokenize = await fetch(`${server.url}/tokenize`, {
      method: 'POST',
      headers: { authorization: `Bearer ${services.keys['narrow']}`, 'content-type': 'application/json' },
      body: JSON.stringify({ model: 'fake', prompt: 'x' }),
    })
    expect(tokenize.status).toBe(403)
  })

  it('answers 429 with Retry-After above the rate', async () => {
    const slow = client(services.keys['slow'])
    await slow.chat.completions.create({ model: 'fake', messages })
    for (const stream of [false, true]) {
      const error = await slow.chat.completions.create({ model: 'fake', messages, stream }).catch((e: unknown) => e)
      expect(error).toBeInstanceOf(RateLimitError)
      expect(error).toMatchObject({ code: 'rate_limit_exceeded' })
      const seconds = error instanceof RateLimitError ? Number(error.headers?.get('retry-after')) : 0
      expect(seconds).toBeGreaterThan(55)
      expect(seconds).toBeLessThanOrEqual(60)
    }
  })

  it.each([
    ['single', 'rate_limit_exceeded', 'this key has 1 requests in flight already'],
    ['patient', 'queue_full', '1 requests of this key are waiting already'],
  ])('answers 429 with Retry-After above the places of a key: %s', async (name, code, message) => {
    services.generator.script = hold
    const stream = client(services.keys[name]).chat.completions.create({ model: 'fake', messages, stream: true })
    const first = await services.generator.run(0)
    const refused = await client(services.keys[name])
      .chat.completions.create({ model: 'fake', messages })
      .catch((e: unknown) => e)
    expect(refused).toBeInstanceOf(RateLimitError)
    expect(refused).toMatchObject({ code, message: `429 ${message}` })
    expect(refused instanceof RateLimitError && refused.headers?.get('retry-after')).toBe('1')
    // Nobody else is kept waiting by that, and its end frees the place.
    services.generator.script = answer('Hello')
    await client(services.keys['all']).chat.completions.create({ model: 'fake', messages })
    first.start()
    first.finish()
    for await (const _ of await stream);
    const again = await client(services.keys[name]).chat.completions.create({ model: 'fake', messages })
    expect(again.choices[0]?.message.content).toBe('Hello')
  })

  it('leaves probes open but tells them no names, and keeps metrics for admins', async () => {
    expect(await (await get('/health')).json()).toEqual({ status: 'ok', models: {} })
    expect(await (await get('/health', services.keys['all'])).json()).toHaveProperty('models.fake')
    services.report.config_remarks = ['models.yaml:1:1: later']
    expect(await (await get('/health', services.keys['all'])).json()).not.toHaveProperty('config_remarks')
    expect(await (await get('/health', services.keys['boss'])).json()).toEqual(services.report)
    expect((await get('/metrics', services.keys['all'])).status).toBe(403)
    expect((await get('/metrics', services.keys['boss'])).status).toBe(200)
    expect((await get('/openapi.json')).status).toBe(200)
  })
})

describe('gRPC', () => {
  let server: GrpcServer
  let client: GatewayClient
  let peer: GrpcPeer
  beforeEach(async () => {
    server = await GrpcServer.listen(services, '127.0.0.1:0')
    client = new GatewayClient(`127.0.0.1:${server.port}`, credentials.createInsecure())
    peer = new GrpcPeer(`127.0.0.1:${server.port}`)
  })
  afterEach(async () => {
    client.close()
    peer.close()
    await server.close()
  })

  const withKey = (name: string): Metadata => {
    const metadata = new Metadata()
    metadata.set('authorization', `Bearer ${services.keys[name]}`)
    return metadata
  }
  const chat = (metadata: Metadata): Promise<ServiceError | undefined> =>
    new Promise((resolve) => {
      const request = { model: 'fake', messages: [{ role: 'user', content: 'hi', name: '' }], options: undefined }
      client.chat(request, metadata, (error) => resolve(error ?? undefined))
    })

  it('answers by key, model and rate', async () => {
    expect(await chat(withKey('all'))).toBeUndefined()
    expect(await chat(new Metadata())).toMatchObject({ code: status.UNAUTHENTICATED })
    expect(await chat(withKey('none'))).toMatchObject({ code: status.UNAUTHENTICATED })
    expect(await chat(withKey('narrow'))).toMatchObject({ code: status.PERMISSION_DENIED })
    expect(await chat(withKey('slow'))).toBeUndefined()
    const limited = await chat(withKey('slow'))
    expect(limited).toMatchObject({ code: status.RESOURCE_EXHAUSTED })
    expect(limited?.metadata.get('edgeshift-error-code')).toEqual(['rate_limit_exceeded'])
    expect(Number(limited?.metadata.get('retry-after-ms')[0])).toBeGreaterThan(55_000)
  })

  it.each([
    ['single', 'rate_limit_exceeded'],
    ['patient', 'queue_full'],
  ])('is exhausted above the places of a key: %s', async (name, code) => {
    services.generator.script = hold
    const held = chat(withKey(name))
    const first = await services.generator.run(0)
    const refused = await chat(withKey(name))
    expect(refused).toMatchObject({ code: status.RESOURCE_EXHAUSTED })
    expect(refused?.metadata.get('edgeshift-error-code')).toEqual([code])
    expect(refused?.metadata.get('retry-after-ms')).toEqual(['1000'])
    first.start()
    first.finish()
    expect(await held).toBeUndefined()
    services.generator.script = answer('Hello')
    expect(await chat(withKey(name))).toBeUndefined()
  })

  it('refuses a stream without a key', async () => {
    const call = client.chatStream({ model: 'fake', messages: [], options: undefined })
    call.on('data', () => undefined).on('error', () => undefined)
    const ended = await new Promise<{ code: status }>((resolve) => call.on('status', resolve))
    expect(ended.code).toBe(status.UNAUTHENTICATED)
  })

  it('lists only the models of the key, and tells probes the box alone', async () => {
    const list = await new Promise<ListModelsResponse>((resolve, reject) => {
      client.listModels({}, withKey('narrow'), (error, value) => (error ? reject(error) : resolve(value)))
    })
    expect(list.models.map(({ id }) => id)).toEqual(['other'])
    expect(await peer.health('')).toBe('SERVING')
    await expect(peer.health('fake')).rejects.toMatchObject({ code: status.NOT_FOUND })
  })
})

describe('WebSocket', () => {
  let http: Server
  let sockets: ChatSockets
  let url: string
  beforeEach(async () => {
    http = createServer()
    sockets = new ChatSockets(services, { closeMs: 2000 })
    sockets.attach(http)
    await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve))
    const address = http.address()
    url = `ws://127.0.0.1:${typeof address === 'object' ? address?.port : 0}/v1/chat/ws`
  })
  afterEach(async () => {
    await sockets.close()
    await new Promise((resolve) => http.close(resolve))
  })

  const byHeader = (name: string): ChatPeer =>
    new ChatPeer(new WebSocket(url, { headers: { authorization: `Bearer ${services.keys[name]}` } }))

  it.each([
    ['a header', () => new WebSocket(url, { headers: { authorization: `Bearer ${services.keys['all']}` } })],
    [
      'a subprotocol, as browsers can',
      () => new UndiciSocket(url, ['edgeshift', `edgeshift-key.${services.keys['all']}`]),
    ],
  ])('takes a key in %s', async (_name, open) => {
    const socket = open()
    const peer = new ChatPeer(socket)
    await peer.opened
    expect(socket.protocol).toBe(socket instanceof WebSocket ? '' : 'edgeshift')
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    expect(textOf(await peer.whole('a'))).toBe('Hello world')
    expect(services.generator.runs[0]?.request.tenant).toBe(services.entries[0]?.id)
  })

  it('refuses the upgrade of a stranger with 401', async () => {
    const reply = new Promise<number | undefined>((resolve) => {
      new WebSocket(url).on('unexpected-response', (request, response) => {
        resolve(response.statusCode)
        request.destroy()
      })
    })
    expect(await reply).toBe(401)
    await expect(new ChatPeer(new UndiciSocket(url, ['edgeshift', 'edgeshift-key.es_a_b'])).opened).rejects.toThrow(
      'did not open',
    )
  })

  it('refuses models and rates by request', async () => {
    const narrow = byHeader('narrow')
    await narrow.opened
    narrow.send({ type: 'chat', id: 'a', model: 'fake', messages })
    expect((await narrow.whole('a')).at(-1)).toMatchObject({ type: 'error', error: { code: 'forbidden' } })
    const slow = byHeader('slow')
    await slow.opened
    for (const id of ['a', 'b']) slow.send({ type: 'chat', id, model: 'fake', messages })
    expect((await slow.whole('a')).at(-1)).toMatchObject({ type: 'usage' })
    const [limited] = await slow.whole('b')
    expect(limited).toMatchObject({ type: 'error', error: { code: 'rate_limit_exceeded' } })
    expect(limited).toHaveProperty('retry_after_ms', expect.any(Number))
  })

  it.each([
    ['single', 'rate_limit_exceeded'],
    ['patient', 'queue_full'],
  ])('refuses what is above the places of a key, and goes on: %s', async (name, code) => {
    services.generator.script = hold
    const peer = byHeader(name)
    await peer.opened
    for (const id of ['a', 'b']) peer.send({ type: 'chat', id, model: 'fake', messages })
    expect(await peer.whole('b')).toMatchObject([{ type: 'error', error: { code }, retry_after_ms: 1000 }])
    peer.send({ type: 'cancel', id: 'a' })
    expect((await peer.whole('a')).at(-1)).toMatchObject({ type: 'error', error: { code: 'cancelled' } })
    services.generator.script = answer('Hello')
    peer.send({ type: 'chat', id: 'c', model: 'fake', messages })
    expect(textOf(await peer.whole('c'))).toBe('Hello')
  })

  it('takes no more requests on an open socket once its key is revoked', async () => {
    const peer = byHeader('all')
    await peer.opened
    services.access.use([])
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages })
    expect(await peer.whole('a')).toMatchObject([{ type: 'error', error: { code: 'unauthorized' } }])
  })
})
