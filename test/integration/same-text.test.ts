/** The embedded model over all three protocols: one meaning, one text, nothing left behind by clients that go away. */
import { Metadata } from '@grpc/grpc-js'
import { WebSocket as UndiciSocket } from 'undici'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { WebSocket } from 'ws'
import { GenerateOptions } from '../../proto/gen/edgeshift/v1/gateway.js'
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'
import { chatOverGrpc, GrpcPeer } from '../support/grpc-clients.js'
import { openAiClient } from '../support/openai-scenarios.js'
import { ChatPeer, chatOverWebSocket } from '../support/websocket-clients.js'

const QUESTION = 'Tell me a story about a fox.'

let box: GatewayProcess
let grpc: GrpcPeer
let socketUrl: string

beforeAll(async () => {
  box = await GatewayProcess.startShipped(onlyRung('fp16')).ready()
  grpc = new GrpcPeer(box.grpcAddress)
  socketUrl = `${box.url.replace('http', 'ws')}/v1/chat/ws`
})

afterAll(async () => {
  grpc.close()
  await box.close()
})

/** Sequences that the engine has or will have. */
async function running(): Promise<number> {
  const text = await (await fetch(`${box.url}/metrics`)).text()
  const gauges = [...text.matchAll(/^edgeshift_num_requests_(?:running|waiting)\S* (\d+)/gm)]
  if (gauges.length === 0) throw new Error('the metrics name no running requests')
  return gauges.reduce((sum, [, value]) => sum + Number(value), 0)
}

it('gives the same text for the same seed over HTTP, gRPC and WebSocket', async () => {
  const fields = { temperature: 0.7, top_p: 0.9, repetition_penalty: 1.1, seed: 42, max_tokens: 24 }
  const over = async (Socket: typeof WebSocket | typeof UndiciSocket): Promise<string> => {
    const peer = new ChatPeer(new Socket(socketUrl))
    const { text } = await chatOverWebSocket(peer, 'chat', QUESTION, fields)
    peer.socket.close()
    return text
  }
  const http = await openAiClient({ url: box.url, model: 'chat' }).chat.completions.create({
    model: 'chat',
    messages: [{ role: 'user', content: QUESTION }],
    ...fields,
  })
  const options = { temperature: 0.7, topP: 0.9, repetitionPenalty: 1.1, seed: 42, maxTokens: 24 }
  const { text } = await chatOverGrpc(grpc, 'chat', QUESTION, options)
  expect(text.length).toBeGreaterThan(20)
  expect([http.choices[0]?.message.content, await over(WebSocket), await over(UndiciSocket)]).toEqual([
    text,
    text,
    text,
  ])
})

it('stops what a client that goes away had asked for', async () => {
  const messages = [{ role: 'user', content: QUESTION, name: '' }]
  for (let i = 0; i < 4; i++) {
    const call = grpc.client.chatStream(
      { model: 'chat', messages, options: GenerateOptions.create({ maxTokens: 4000, ignoreEos: true }) },
      new Metadata(),
    )
    call.on('error', () => undefined)
    await new Promise((resolve) => call.once('data', resolve))
    call.cancel()
    const socket = new WebSocket(socketUrl)
    const peer = new ChatPeer(socket)
    await peer.opened
    peer.send({
      type: 'chat',
      id: 'a',
      model: 'chat',
      messages: [{ role: 'user', content: QUESTION }],
      max_tokens: 4000,
    })
    await peer.find(({ type }) => type === 'started')
    socket.terminate()
  }
  // Each look is a request of its own, so this is no busy loop; the test's time limit bounds it.
  let left = await running()
  while (left > 0) left = await running()
  expect(left).toBe(0)
}, 60_000)
