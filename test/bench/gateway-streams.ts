// node --import tsx test/bench/gateway-streams.ts
// Sustained tokens per second over 100 streams of each protocol through the gateway, one event a token, and what the
// bare library reaches with the same events and the same client, in turns. Then the memory of idle streams.
import { connect } from 'node:net'
import { credentials } from '@grpc/grpc-js'
import { WebSocket } from 'ws'
import { GatewayClient } from '../../proto/gen/edgeshift/v1/gateway.js'
import { percentile, residentBytes, short } from './figures.js'
import { at, startGateway, startNode } from './processes.js'
import { postBytes } from './raw-http.js'

const STREAMS = 100
const IDLE_STREAMS = 400
const ROUNDS = Number(process.env.ROUNDS ?? 3)
const SECONDS = Number(process.env.SECONDS ?? 4)
const MAX_TOKENS = 8000

const messages = [{ role: 'user', content: 'Hi' }]
const chat = { model: 'm', max_tokens: MAX_TOKENS, messages }

/** Ports of a server. */
interface Ports {
  http: number
  grpc: number
}

/** Opens one endless stream; calls `onEvents` with the number of events that came. Returns what closes it. */
type Opener = (ports: Ports, onEvents: (count: number) => void, body?: object) => () => void

const sseRequest = (body: object): Buffer => postBytes('/v1/chat/completions', { ...body, stream: true })

const openSse: Opener = ({ http }, onEvents, body = chat) => {
  const request = sseRequest(body)
  const socket = connect(http, '127.0.0.1', () => socket.write(request))
  socket.setEncoding('latin1').on('data', (text: string) => {
    let count = 0
    for (let i = text.indexOf('data: '); i >= 0; i = text.indexOf('data: ', i + 6)) count++
    onEvents(count)
    // A stream that is complete starts again.
    if (text.includes('[DONE]')) socket.write(request)
  })
  socket.on('error', () => undefined)
  return () => socket.destroy()
}

const openWs: Opener = ({ http }, onEvents, body = chat) => {
  const socket = new WebSocket(`ws://127.0.0.1:${http}/v1/chat/ws`, { perMessageDeflate: false })
  const request = JSON.stringify({ type: 'chat', id: 'a', ...body })
  socket.on('open', () => socket.send(request))
  socket.on('message', (data: Buffer) => {
    onEvents(1)
    if (data.includes('"type":"usage"')) socket.send(request)
  })
  socket.on('error', () => undefined)
  return () => socket.terminate()
}

const openGrpc: Opener = ({ grpc }, onEvents) => {
  const client = new GatewayClient(`127.0.0.1:${grpc}`, credentials.createInsecure(), {
    'grpc.use_local_subchannel_pool': 1,
  })
  let call: ReturnType<GatewayClient['chatStream']> | undefined
  const start = (): void => {
    call = client.chatStream({
      model: 'm',
      messages: [{ role: 'user', content: 'Hi', name: '' }],
      options: { maxTokens: MAX_TOKENS, logitBias: new Map(), stop: [], stopTokenIds: [] },
    })
    call.on('data', () => onEvents(1)).on('end', start)
    call.on('error', () => undefined)
  }
  start()
  return () => {
    call?.removeListener('end', start)
    call?.cancel()
    client.close()
  }
}

/** Events per second over STREAMS streams, after half a second of warming up. */
async function rate(open: Opener, ports: Ports): Promise<number> {
  let events = 0
  const closers = Array.from({ length: STREAMS }, () => open(ports, (count) => (events += count)))
  await wait(500)
  const before = { events, at: performance.now() }
  await wait(SECONDS * 1000)
  const perSecond = ((events - before.events) / (performance.now() - before.at)) * 1000
  for (const close of closers) close()
  await wait(300)
  return perSecond
}

const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Resident bytes that each of IDLE_STREAMS streams adds whose next token is far away. */
async function idleBytes(open: Opener): Promise<number> {
  const idle = await startGateway(600_000)
  const pid = idle.child.pid ?? 0
  const opened = (count: number): Promise<() => void> =>
    new Promise((resolve) => {
      let first = 0
      const closers = Array.from({ length: count }, () =>
        open(idle, () => {
          if (++first === count) resolve(() => closers.forEach((close) => close()))
        }),
      )
    })
  // What the first streams bring (code, pools) is no stream's own.
  const warm = await opened(100)
  await wait(500)
  const before = await residentBytes(pid)
  const close = await opened(IDLE_STREAMS)
  await wait(500)
  const bytes = ((await residentBytes(pid)) - before) / IDLE_STREAMS
  close()
  warm()
  await idle.close()
  return bytes
}

const gateway = await startGateway(0)
const head =
  '"id":"chatcmpl-00000000-0000-0000-0000-000000000000","object":"chat.completion.chunk","created":1795451012'
const choice = '"choices":[{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}]'
const event = `data: {${head},"model":"m:int4","system_fingerprint":"fp-m:int4",${choice}}\n\n`
const bare = await startNode(['--import', 'tsx', at('test/bench/bare-server.ts')], 'ready', {
  SSE_EVENT: event,
  WS_MESSAGE: '{"type":"delta","id":"a","index":0,"text":"a","tokens":[100]}',
})
const barePort = (name: string): number => Number(new RegExp(`${name} (\\d+)`).exec(bare.output)?.[1])
const barePorts = { http: barePort('http'), grpc: barePort('grpc') }

const protocols: [string, Opener][] = [
  ['SSE', openSse],
  ['gRPC', openGrpc],
  ['WebSocket', openWs],
]
const only = process.env.ONLY
for (const [name, open] of protocols) {
  if (only !== undefined && only !== name) continue
  const rounds: { ours: number; bare: number }[] = []
  for (let i = 0; i < ROUNDS; i++) rounds.push({ ours: await rate(open, gateway), bare: await rate(open, barePorts) })
  const ours = percentile(
    rounds.map((round) => round.ours),
    0.5,
  )
  const library = percentile(
    rounds.map((round) => round.bare),
    0.5,
  )
  const figures = `${Math.round(ours)} tokens/s, the bare library ${Math.round(library)} (${short(library / ours)}x)`
  console.log(`${name.padEnd(10)} ${STREAMS} streams: ${figures}`)
}
await Promise.all([gateway.close(), bare.close()])
for (const [name, open] of protocols)
  console.log(`${name.padEnd(10)} ${short((await idleBytes(open)) / 1000)} kB per idle stream`)
process.exit(0)
