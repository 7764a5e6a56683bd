// node --import tsx test/bench/gateway-peer.ts
// Non-streaming chat with a two-token answer at 16 connections: this gateway before a scripted engine, and
// @portkey-ai/gateway before a mock upstream, in turns. Installs the peer into .cache/bench on first use.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { percentile, residentBytes, short } from './figures.js'
import { at, startGateway, startNode } from './processes.js'
import { postBytes, RawConnection } from './raw-http.js'

const PEER = '@portkey-ai/gateway@1.15.2'
const CONNECTIONS = 16
const ROUNDS = Number(process.env.ROUNDS ?? 3)
const SECONDS = Number(process.env.SECONDS ?? 5)

const folder = at('.cache/bench/portkey')
const peerScript = `${folder}/node_modules/@portkey-ai/gateway/build/start-server.js`
if (!existsSync(peerScript)) {
  mkdirSync(folder, { recursive: true })
  spawnSync('npm', ['install', '--no-save', '--no-audit', '--no-fund', '--prefix', folder, PEER], { stdio: 'inherit' })
}

interface Round {
  perSecond: number
  latencies: number[]
}

async function load(port: number, request: Buffer, seconds: number): Promise<Round> {
  const latencies: number[] = []
  const start = performance.now()
  const worker = async (): Promise<void> => {
    const connection = await RawConnection.open(port)
    while (performance.now() < start + seconds * 1000) {
      const sent = performance.now()
      const answer = await connection.whole(request)
      if (!answer.startsWith('HTTP/1.1 200')) throw new Error(answer)
      latencies.push(performance.now() - sent)
    }
    connection.close()
  }
  await Promise.all(Array.from({ length: CONNECTIONS }, worker))
  return { perSecond: (latencies.length / (performance.now() - start)) * 1000, latencies }
}

const body = { model: 'm', max_tokens: 2, messages: [{ role: 'user', content: 'Say hello to the world.' }] }
const gateway = await startGateway(0)
const mock = await startNode([at('test/bench/mock-upstream.mjs')], 'ready')
const mockPort = /port (\d+)/.exec(mock.output)?.[1]
const peerPort = 20_000 + (process.pid % 20_000)
const peer = await startNode([peerScript, `--port=${peerPort}`, '--headless'], 'Ready', { NODE_ENV: 'production' })

const ours = postBytes('/v1/chat/completions', body)
const theirs = postBytes('/v1/chat/completions', body, {
  'x-portkey-provider': 'openai',
  'x-portkey-custom-host': `http://127.0.0.1:${mockPort}/v1`,
  authorization: 'Bearer none',
})
await load(gateway.http, ours, 3)
await load(peerPort, theirs, 3)
const rounds: { ours: Round; theirs: Round }[] = []
for (let i = 0; i < ROUNDS; i++) {
  rounds.push({ ours: await load(gateway.http, ours, SECONDS), theirs: await load(peerPort, theirs, SECONDS) })
}
const report = (name: string, of: (round: (typeof rounds)[number]) => Round): number => {
  const perSecond = percentile(
    rounds.map((round) => of(round).perSecond),
    0.5,
  )
  const all = rounds.flatMap((round) => of(round).latencies)
  const [p50, p99] = [percentile(all, 0.5), percentile(all, 0.99)]
  console.log(`${name.padEnd(28)} ${short(perSecond)} req/s, p50 ${short(p50)} ms, p99 ${short(p99)} ms`)
  return perSecond
}
const a = report('edgeshift', (round) => round.ours)
const b = report(PEER, (round) => round.theirs)
const memory = await Promise.all([gateway, peer].map(({ child }) => residentBytes(child.pid ?? 0)))
console.log(
  `ratio ${short(a / b)}; resident ${memory.map((bytes) => `${Math.round(bytes / 1e6)} MB`).join(' against ')}`,
)
await Promise.all([gateway.close(), mock.close(), peer.close()])
