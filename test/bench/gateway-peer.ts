// node --import tsx test/bench/gateway-peer.ts
// Non-streaming chat with a two-token answer at 16 connections: this gateway before a scripted engine, and
// @portkey-ai/gateway before a mock upstream, in turns. Ours once with the same chat in every request, as gateways are
// usually measured, and once with another text in each, which no cache of encoded chats can help with.
// Installs the peer into .cache/bench on first use.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { cpuSeconds, percentile, residentBytes, short } from './figures.js'
import { at, startGateway, startNode } from './processes.js'
import { postBytes, RawConnection } from './raw-http.js'

const PEER = '@portkey-ai/gateway@1.15.2'
const CONNECTIONS = 16
const ROUNDS = Number(process.env.ROUNDS ?? 3)
const SECONDS = Number(process.env.SECONDS ?? 5)
/** Both need some ten thousand requests until their code is compiled. */
const WARM_SECONDS = 6

const folder = at('.cache/bench/portkey')
const peerScript = `${folder}/node_modules/@portkey-ai/gateway/build/start-server.js`
if (!existsSync(peerScript)) {
  mkdirSync(folder, { recursive: true })
  spawnSync('npm', ['install', '--no-save', '--no-audit', '--no-fund', '--prefix', folder, PEER], { stdio: 'inherit' })
}

interface Round {
  perSecond: number
  latencies: number[]
  /** Microseconds of the gateway process, and of this one as the client, per request. */
  gatewayCpu: number
  clientCpu: number
}

/** Digits in the prompt that count the requests. */
const COUNTER = '0000000000'
let sequence = 0

/** Numbers a request anew, in place. */
function renumber(request: Buffer, offset: number): void {
  request.write(String(++sequence).padStart(COUNTER.length, '0'), offset, 'latin1')
}

async function load({ port, pid, request, same }: Subject, seconds: number): Promise<Round> {
  const latencies: number[] = []
  const before = { gateway: await cpuSeconds(pid), client: process.cpuUsage() }
  const start = performance.now()
  const counterAt = request.indexOf(COUNTER)
  const worker = async (): Promise<void> => {
    const connection = await RawConnection.open(port)
    const own = Buffer.from(request)
    while (performance.now() < start + seconds * 1000) {
      if (!same) renumber(own, counterAt)
      const sent = performance.now()
      const answer = await connection.whole(own)
      if (!answer.startsWith('HTTP/1.1 200')) throw new Error(answer)
      latencies.push(performance.now() - sent)
    }
    connection.close()
  }
  await Promise.all(Array.from({ length: CONNECTIONS }, worker))
  const perSecond = (latencies.length / (performance.now() - start)) * 1000
  const client = process.cpuUsage(before.client)
  const gatewayCpu = (((await cpuSeconds(pid)) - before.gateway) * 1e6) / latencies.length
  return { perSecond, latencies, gatewayCpu, clientCpu: (client.user + client.system) / latencies.length }
}

/** A gateway under load. */
interface Subject {
  port: number
  pid: number
  request: Buffer
  /** Every request is the same to the byte. */
  same: boolean
}

const content = `Say hello to the world. ${COUNTER}`
const body = { model: 'm', max_tokens: 2, messages: [{ role: 'user', content }] }
const gateway = await startGateway(0)
const mock = await startNode([at('test/bench/mock-upstream.mjs')], 'ready')
const mockPort = /port (\d+)/.exec(mock.output)?.[1]
const peerPort = 20_000 + (process.pid % 20_000)
const peer = await startNode([peerScript, `--port=${peerPort}`, '--headless'], 'Ready', { NODE_ENV: 'production' })

const request = postBytes('/v1/chat/completions', body)
const own = { port: gateway.http, pid: gateway.child.pid ?? 0, request }
const peerRequest = postBytes('/v1/chat/completions', body, {
  'x-portkey-provider': 'openai',
  'x-portkey-custom-host': `http://127.0.0.1:${mockPort}/v1`,
  authorization: 'Bearer none',
})
const subjects = {
  same: { ...own, same: true },
  distinct: { ...own, same: false },
  peer: { port: peerPort, pid: peer.child.pid ?? 0, request: peerRequest, same: false },
}
type Rounds = Record<keyof typeof subjects, Round>

async function oneRound(seconds: number): Promise<Rounds> {
  const peerRound = await load(subjects.peer, seconds)
  const distinct = await load(subjects.distinct, seconds)
  return { peer: peerRound, distinct, same: await load(subjects.same, seconds) }
}

await oneRound(WARM_SECONDS)
const rounds: Rounds[] = []
for (let i = 0; i < ROUNDS; i++) rounds.push(await oneRound(SECONDS))
/** The median of the rounds' figure. */
const median = (of: (round: (typeof rounds)[number]) => number): number => percentile(rounds.map(of), 0.5)
const report = (name: string, of: keyof Rounds): void => {
  const all = rounds.flatMap((round) => round[of].latencies)
  const perSecond = median((round) => round[of].perSecond)
  const [p50, p99] = [percentile(all, 0.5), percentile(all, 0.99)]
  const [gatewayCpu, clientCpu] = [median((round) => round[of].gatewayCpu), median((round) => round[of].clientCpu)]
  const cpu = `CPU per request ${short(gatewayCpu)} us, the client's ${short(clientCpu)} us`
  console.log(`${name.padEnd(28)} ${short(perSecond)} req/s, p50 ${short(p50)} ms, p99 ${short(p99)} ms; ${cpu}`)
}
report(PEER, 'peer')
for (const [name, of] of [
  ['edgeshift, distinct chats', 'distinct'],
  ['edgeshift, one chat', 'same'],
] as const) {
  report(name, of)
  // Ratios are taken within a round, whose parts had the same machine.
  const speed = median((round) => round[of].perSecond / round.peer.perSecond)
  const cpu = median((round) => round.peer.gatewayCpu / round[of].gatewayCpu)
  console.log(`  ${short(speed)} times the peer's requests per second, 1/${short(cpu)} of its CPU per request`)
}
const memory = await Promise.all([gateway, peer].map(({ child }) => residentBytes(child.pid ?? 0)))
console.log(`resident ${memory.map((bytes) => `${Math.round(bytes / 1e6)} MB`).join(' against ')}`)
await Promise.all([gateway.close(), mock.close(), peer.close()])
