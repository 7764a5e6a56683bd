/** The embedded model behind keys, over every way to ask: what served it and why, and what keys share. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { credentials, Metadata } from '@grpc/grpc-js'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { WebSocket } from 'ws'
import { newKey } from '../../gateway/keys/secret.js'
import { ChatRequest, GatewayClient, type GenerateResponse } from '../../proto/gen/edgeshift/v1/gateway.js'
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'
import { collect } from '../support/grpc-clients.js'
import { ChatPeer } from '../support/websocket-clients.js'

const messages = [{ role: 'user', content: 'Tell me a story about a fox who lost its way in the snow.' }]
const keys = { a: newKey(), b: newKey() }
let folder: string
let box: GatewayProcess
let client: GatewayClient

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'es-served-'))
  const file = join(folder, 'keys.yaml')
  const entries = Object.entries(keys).map(([name, { id, sha256 }]) => ({ id, name, sha256, admin: name === 'a' }))
  writeFileSync(file, JSON.stringify({ keys: entries }))
  const keyed = (config: string): string =>
    config.replace('server:\n', `server:\n  api_keys_file: ${JSON.stringify(file)}\n`)
  box = await GatewayProcess.startShipped((config) => keyed(onlyRung('int4')(config))).ready()
  client = new GatewayClient(box.grpcAddress, credentials.createInsecure())
}, 120_000)
afterAll(async () => {
  client.close()
  await box.close()
  rmSync(folder, { recursive: true })
})

/** The same wish over HTTP, gRPC and WebSocket: the ladder has no fp16. */
const body = { model: 'chat', messages, max_tokens: 3, precision: 'fp16' }
const headers = { 'content-type': 'application/json', authorization: `Bearer ${keys.a.text}` }
const asGrpc = ChatRequest.fromPartial({ model: 'chat', messages, options: { maxTokens: 3, precision: 'fp16' } })

function metadata(): Metadata {
  const made = new Metadata()
  made.set('authorization', headers.authorization)
  return made
}

/** What an answer says served it and why, in every place that it does. */
type Told = [variant: unknown, reason: unknown][]

async function overHttp(stream: boolean): Promise<Told> {
  const response = await fetch(`${box.url}/v1/chat/completions`, {
    method: 'POST',
    headers,
    body: JSON.stringify({ ...body, stream }),
  })
  const text = await response.text()
  const model = /"model":"([^"]+)"/.exec(text)?.[1]
  const reason = response.headers.get('x-edgeshift-reason')
  return [
    [response.headers.get('x-edgeshift-variant'), reason],
    [model, reason],
  ]
}

async function overUnaryGrpc(): Promise<Told> {
  let initial = new Metadata()
  let trailers = new Metadata()
  const response = await new Promise<GenerateResponse>((resolve, reject) => {
    const call = client.chat(asGrpc, metadata(), (error, value) => (error ? reject(error) : resolve(value)))
    call.on('metadata', (received: Metadata) => (initial = received))
    call.on('status', (status) => (trailers = status.metadata))
  })
  const inMetadata = [initial, trailers].map((from): Told[number] => [
    from.get('x-edgeshift-variant')[0],
    from.get('x-edgeshift-reason')[0],
  ])
  return [[response.variant, response.reason], ...inMetadata]
}

async function overStreamedGrpc(): Promise<Told> {
  const { events, status } = await collect(client.chatStream(asGrpc, metadata()))
  const first = events[0]?.kind
  const started: Told[number] = first?.$case === 'started' ? [first.started.variant, first.started.reason] : ['', '']
  return [started, [status.metadata.get('x-edgeshift-variant')[0], status.metadata.get('x-edgeshift-reason')[0]]]
}

async function overWebSocket(): Promise<Told> {
  const peer = new ChatPeer(new WebSocket(`${box.url.replace('http', 'ws')}/v1/chat/ws`, { headers }))
  await peer.opened
  peer.send({ type: 'chat', id: 'a', ...body })
  const [started] = await peer.whole('a')
  peer.socket.close()
  return started?.type === 'started' ? [[started.variant, started.reason]] : []
}

it('every answer says what served it and why, and so do the metrics', async () => {
  const told = await Promise.all([
    overHttp(false),
    overHttp(true),
    overUnaryGrpc(),
    overStreamedGrpc(),
    overWebSocket(),
  ])
  expect(told.map((places) => places.length)).toEqual([2, 2, 3, 2, 1])
  const reason = 'nearest: the ladder has no rung of the precision asked for'
  for (const place of told.flat()) expect(place).toEqual(['smollm2:int4', reason])
  const metrics = await (await fetch(`${box.url}/metrics`, { headers })).text()
  expect(metrics).toContain('edgeshift_routes_total{variant="smollm2:int4",reason="nearest"} 5\n')
})

it('keys share no cached prefixes, each finds its own', async () => {
  const prompt = 'The quick brown fox jumps over the lazy dog while the sun sets behind the old mill. '.repeat(4)
  const cached = async (key: string): Promise<number> => {
    const response = await fetch(`${box.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${key}` },
      body: JSON.stringify({ model: 'chat', prompt, max_tokens: 1 }),
    })
    const answer: { usage: { prompt_tokens_details: { cached_tokens: number } } } = JSON.parse(await response.text())
    return answer.usage.prompt_tokens_details.cached_tokens
  }
  const { a, b } = keys
  const first = [await cached(a.text), await cached(b.text)]
  expect(first).toEqual([0, 0])
  for (const { text } of [a, b]) expect(await cached(text)).toBeGreaterThan(40)
})
