import { connect as connectHttp2 } from 'node:http2'
import { Metadata, status, type StatusObject } from '@grpc/grpc-js'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { GrpcServer } from '../../gateway/protocols/grpc/server.js'
import type { ChatRequest, DetokenizeResponse, ListModelsResponse } from '../../proto/gen/edgeshift/v1/gateway.js'
import { answer, type FakeServices, fakeServices, hold } from '../support/fake-services.js'
import { chatOverGrpc, collect, GrpcPeer, reflectedClient } from '../support/grpc-clients.js'

const chat = (content = 'hi', options = {}) => ({
  model: 'fake',
  messages: [{ role: 'user', content, name: '' }],
  options: { logitBias: new Map<number, number>(), stop: [], stopTokenIds: [], ...options },
})

/** The status a call failed with. */
async function failure(call: Promise<unknown>): Promise<StatusObject> {
  return call.then(
    () => Promise.reject(new Error('the call did not fail')),
    (error: StatusObject) => error,
  )
}

let services: FakeServices
let server: GrpcServer
let peer: GrpcPeer

beforeEach(async () => {
  services = fakeServices(answer('Hello', ' world'))
  server = await GrpcServer.listen(services, '127.0.0.1:0', { stallMs: 200, healthIntervalMs: 10 })
  peer = new GrpcPeer(`127.0.0.1:${server.port}`)
})

afterEach(async () => {
  peer.close()
  await server.close()
})

describe('generation', () => {
  it('answers a unary chat with text, usage and what served it', async () => {
    const { response, metadata, trailers } = await peer.chat(chat())
    expect(services.generator.runs[0]?.request.whole).toBe(true)
    expect(response).toMatchObject({
      variant: 'fake:int4',
      choices: [{ index: 0, text: 'Hello world', finishReason: 'stop', tokens: [5, 6] }],
      usage: { promptTokens: 3, completionTokens: 2 },
    })
    expect(response.id).toMatch(/^req-/)
    for (const served of [metadata, trailers]) {
      expect(served.get('x-edgeshift-variant')).toEqual(['fake:int4'])
      expect(served.get('x-edgeshift-reason')).toEqual(['only rung'])
    }
  })

  it('streams one message per event, usage last', async () => {
    const result = await collect(peer.client.chatStream(chat('hi', { n: 2 })))
    expect(result.events.map((event) => event.kind?.$case)).toEqual([
      'started',
      ...Array.from({ length: 4 }, () => 'delta'),
      'finished',
      'finished',
      'usage',
    ])
    expect(result.texts).toEqual(['Hello world', 'Hello world'])
    expect(result.status.code).toBe(status.OK)
    expect(result.status.metadata.get('x-edgeshift-variant')).toEqual(['fake:int4'])
  })

  it('completes text and token prompts', async () => {
    const options = chat().options
    const text = collect(
      peer.client.completeStream({ model: 'fake', prompt: { $case: 'text', text: 'Once' }, options, echo: true }),
    )
    expect((await text).texts).toEqual(['Hello world'])
    const tokens = {
      model: 'fake',
      prompt: { $case: 'tokens' as const, tokens: { ids: [1, 2] } },
      options,
      echo: false,
    }
    expect((await collect(peer.client.completeStream(tokens))).texts).toEqual(['Hello world'])
    expect(services.generator.runs.map((run) => [run.request.input, run.request.echo, run.request.maxTokens])).toEqual([
      [{ kind: 'text', text: 'Once' }, true, 16],
      [{ kind: 'tokens', tokens: [1, 2] }, false, 16],
    ])
  })

  it('passes options, metadata and deadline on', async () => {
    const metadata = new Metadata()
    metadata.set('traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01')
    metadata.set('x-edgeshift-priority', '-3')
    metadata.set('x-request-id', 'mine')
    const call = peer.client.chatStream(
      chat('hi', { temperature: 0.7, topK: 5, seed: -9, stop: ['x'], topLogprobs: 2, logitBias: new Map([[7, 0.1]]) }),
      metadata,
      { deadline: Date.now() + 60_000 },
    )
    await collect(call)
    const { request } = await services.generator.run(0)
    expect(request).toMatchObject({ topLogprobs: 2, stop: ['x'], priority: -3, whole: false })
    expect(request.sampling).toMatchObject({ temperature: 0.7, topK: 5, seed: -9, logitBias: new Map([[7, 0.1]]) })
    expect(request.traceparent).toBe('00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01')
    expect(request.deadlineMs).toBeGreaterThan(50_000)
    expect(request.id).not.toContain('mine')
  })
})

describe('errors', () => {
  it.each<[string, ChatRequest, number, string, string | undefined]>([
    ['no model', { ...chat(), model: '' }, status.INVALID_ARGUMENT, 'invalid_request', 'model'],
    ['unknown model', { ...chat(), model: 'none' }, status.NOT_FOUND, 'model_not_found', 'model'],
    ['no messages', { ...chat(), messages: [] }, status.INVALID_ARGUMENT, 'invalid_request', 'messages'],
    [
      'bad role',
      { ...chat(), messages: [{ role: 'x', content: '', name: '' }] },
      3,
      'invalid_request',
      'messages[0].role',
    ],
    ['temperature', chat('hi', { temperature: 3 }), status.INVALID_ARGUMENT, 'invalid_request', 'temperature'],
    ['not a number', chat('hi', { topP: Number.NaN }), status.INVALID_ARGUMENT, 'invalid_request', 'top_p'],
    ['too many choices', chat('hi', { n: 99 }), status.INVALID_ARGUMENT, 'invalid_request', 'n'],
  ])('%s', async (_, request, code, name, param) => {
    services.generator.script = (run) =>
      run.fail(new GatewayError('model_not_found', 'no such model', { param: 'model' }))
    const unary = await failure(peer.chat(request))
    const streamed = await collect(peer.client.chatStream(request))
    for (const failed of [unary, streamed.status]) {
      expect(failed.code).toBe(code)
      expect(failed.metadata.get('edgeshift-error-code')).toEqual([name])
      expect(failed.metadata.get('edgeshift-error-param')).toEqual(param === undefined ? [] : [param])
    }
  })

  it('tells when to retry', async () => {
    services.generator.script = (run) => run.fail(new GatewayError('queue_full', 'busy', { retryAfterMs: 1500.2 }))
    const { status: ended } = await collect(peer.client.chatStream(chat()))
    expect([ended.code, ended.details]).toEqual([status.RESOURCE_EXHAUSTED, 'busy'])
    expect(ended.metadata.get('retry-after-ms')).toEqual(['1501'])
  })

  it('keeps the variant in the trailers of a stream that fails midway', async () => {
    services.generator.script = (run) => {
      run.start()
      run.text('par')
      run.fail(new GatewayError('engine_failed', 'the engine died'))
    }
    const result = await collect(peer.client.chatStream(chat()))
    expect(result.texts).toEqual(['par'])
    expect(result.status.code).toBe(status.UNAVAILABLE)
    expect(result.status.metadata.get('x-edgeshift-variant')).toEqual(['fake:int4'])
  })

  it('refuses bytes that are no message, broken UTF-8 and oversize requests, and stays up', async () => {
    const bad: [Buffer, number][] = [
      [Buffer.from([0xff, 0xff, 0xff]), status.INVALID_ARGUMENT],
      // field 1 (model), 2 bytes, not UTF-8
      [Buffer.from([0x0a, 0x02, 0xc3, 0x28]), status.INVALID_ARGUMENT],
      // options.seed beyond 53 bits
      [Buffer.from([0x1a, 0x0a, 0x48, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), status.INVALID_ARGUMENT],
      [Buffer.alloc(services.limits.maxBodyBytes + 1), status.RESOURCE_EXHAUSTED],
    ]
    for (const [bytes, code] of bad) expect((await peer.raw('Chat', bytes)).code).toBe(code)
    expect((await peer.raw('Nothing', Buffer.alloc(0))).code).toBe(status.UNIMPLEMENTED)
    expect(await chatOverGrpc(peer, 'fake', 'hi')).toMatchObject({ text: 'Hello world' })
  })
})

describe('ends', () => {
  it('cancels the request when the client cancels or goes away', async () => {
    services.generator.script = hold
    const call = peer.client.chatStream(chat())
    call.on('error', () => undefined)
    const run = await services.generator.run(0)
    call.cancel()
    await run.until((one) => one.cancelled)
    const unary = peer.client.chat(chat(), () => undefined)
    const second = await services.generator.run(1)
    unary.cancel()
    await second.until((one) => one.cancelled)
    expect(services.generator.active).toBe(0)
  })

  it('cancels the request when its deadline passes', async () => {
    services.generator.script = hold
    const result = collect(peer.client.chatStream(chat(), new Metadata(), { deadline: Date.now() + 50 }))
    const run = await services.generator.run(0)
    expect((await result).status.code).toBe(status.DEADLINE_EXCEEDED)
    await run.until((one) => one.cancelled)
  })

  it('pauses a request whose reader lags and resumes it', async () => {
    services.generator.script = hold
    const call = peer.client.chatStream(chat())
    call.on('error', () => undefined)
    // The library's client buffers without bound until its first read: read once, then stop.
    call.once('data', () => call.pause())
    const run = await services.generator.run(0)
    run.start()
    for (let i = 0; i < 1000 && !run.paused; i++) {
      run.text('x'.repeat(8192))
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(run.paused).toBe(true)
    call.on('data', () => undefined).resume()
    await run.until((one) => !one.paused)
    run.finish()
    await new Promise((resolve) => call.on('status', resolve))
  })

  it('gives up on a reader that has stalled', async () => {
    services.generator.script = hold
    const call = peer.client.chatStream(chat())
    call.on('error', () => undefined)
    call.once('data', () => call.pause())
    const run = await services.generator.run(0)
    run.start()
    while (!run.cancelled) {
      if (!run.paused) run.text('x'.repeat(8192))
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(run.ended).toBe(true)
    call.cancel()
  })

  it('survives clients that vanish in the handshake and in mid-call', async () => {
    services.generator.script = hold
    for (let i = 0; i < 20; i++) {
      const session = connectHttp2(`http://127.0.0.1:${server.port}`)
      session.on('error', () => undefined)
      const stream = session.request({ ':method': 'POST', ':path': '/edgeshift.v1.Gateway/ChatStream', te: 'trailers' })
      stream.on('error', () => undefined)
      session.destroy()
    }
    services.generator.script = answer('still here')
    expect((await peer.chat(chat())).response.choices[0]?.text).toBe('still here')
  })

  it('leaves nothing behind after 1,000 calls that are aborted', async () => {
    services.generator.script = (run) => run.start()
    const before = process.getActiveResourcesInfo().length
    for (let batch = 0; batch < 10; batch++) {
      const ends = Array.from({ length: 100 }, async () => {
        const call = peer.client.chatStream(chat())
        const ended = collect(call)
        // Not before: the library's client sends the request, but not the cancellation, of a call cancelled at once.
        await new Promise((resolve) => call.once('data', resolve))
        call.cancel()
        return (await ended).status.code
      })
      expect(new Set(await Promise.all(ends))).toEqual(new Set([status.CANCELLED]))
    }
    await vi.waitFor(() => expect(services.generator.active).toBe(0))
    await vi.waitFor(() => expect(process.getActiveResourcesInfo().length).toBeLessThanOrEqual(before + 4))
  })

  it('lets running calls end when it closes', async () => {
    services.generator.script = hold
    const result = collect(peer.client.chatStream(chat()))
    const run = await services.generator.run(0)
    const closed = server.close(10_000)
    run.start()
    run.text('done')
    run.finish()
    expect((await result).texts).toEqual(['done'])
    await closed
  })
})

describe('other calls', () => {
  it('lists models, tokenizes and detokenizes', async () => {
    const { models } = await peer.unary<ListModelsResponse>((done) => peer.client.listModels({}, done))
    const [fake] = models
    expect(models.map(({ id, tags, maxModelLen, rung }) => ({ id, tags, maxModelLen, rung }))).toEqual([
      { id: 'fake', tags: ['chat', 'default'], maxModelLen: 128, rung: 'fake:fp16' },
      { id: 'other', tags: [], maxModelLen: 64, rung: 'other:fp16' },
    ])
    expect(fake?.variants).toMatchObject([
      { name: 'fake:fp16', state: 'unloaded', serves: false, why: 'fp16 does not fit', breaker: 'closed' },
      { name: 'fake:int4', state: 'ready', serves: true, why: '', neededBytes: 560_000_000, device: 'cpu0' },
    ])
    const tokenized = await peer.unary((done) =>
      peer.client.tokenize({ model: 'chat', text: 'ab', parseSpecial: false }, done),
    )
    expect(tokenized).toEqual({ tokens: [97, 98], maxModelLen: 128 })
    const { text } = await peer.unary<DetokenizeResponse>((done) =>
      peer.client.detokenize({ model: 'fake', tokens: [97, 98] }, done),
    )
    expect(text).toBe('ab')
  })

  it('refuses unknown models and ids', async () => {
    const none = peer.unary((done) => peer.client.tokenize({ model: 'none', text: '', parseSpecial: false }, done))
    await expect(none).rejects.toMatchObject({ code: status.NOT_FOUND })
    const wild = peer.unary((done) => peer.client.detokenize({ model: 'fake', tokens: [4_000_000_000] }, done))
    await expect(wild).rejects.toMatchObject({ code: status.INVALID_ARGUMENT })
  })

  it('reports health overall, per model and per rung', async () => {
    expect(await Promise.all(['', 'fake', 'fake:int4', 'fake:fp16', 'other'].map((name) => peer.health(name)))).toEqual(
      ['SERVING', 'SERVING', 'SERVING', 'NOT_SERVING', 'NOT_SERVING'],
    )
    await expect(peer.health('__proto__')).rejects.toMatchObject({ code: status.NOT_FOUND })
    services.report = { status: 'loading', models: {} }
    expect(await peer.health('')).toBe('NOT_SERVING')
  })

  it('tells watchers when the state changes', async () => {
    const seen: string[] = []
    const watch = peer.watchHealth('', (state) => seen.push(state))
    await vi.waitFor(() => expect(seen).toEqual(['SERVING']))
    services.report = { ...services.report, status: 'draining' }
    await vi.waitFor(() => expect(seen).toEqual(['SERVING', 'NOT_SERVING']))
    watch.cancel()
  })

  it('is usable from reflection alone', async () => {
    const { services: listed, client } = await reflectedClient(`127.0.0.1:${server.port}`)
    expect(listed.sort()).toEqual(['edgeshift.v1.Gateway', 'grpc.health.v1.Health'])
    try {
      const response = await client.call('Chat', { model: 'fake', messages: [{ role: 'user', content: 'hi' }] })
      expect(response).toMatchObject({ choices: [{ text: 'Hello world' }] })
    } finally {
      client.close()
    }
  })
})
