// node --import tsx test/bench/gateway-latency.ts
// Time to first token at 16 connections: through HTTP, and of the same engine directly over its session. Streams of
// 16 tokens, the first at once, the others 20 ms apart; alternating rounds. "Added" is (through the gateway - direct).
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { spawn } from 'node:child_process'
import { EngineSession } from '../../gateway/engine-client/session.js'
import { openClient, waitForReady } from '../../gateway/engine-client/connect.js'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { percentile, short } from './figures.js'
import { at, startGateway } from './processes.js'
import { postBytes, RawConnection } from './raw-http.js'

const CONNECTIONS = 16
const TOKENS = 16
const STEP_MS = 20
const ROUNDS = Number(process.env.ROUNDS ?? 3)
const REQUESTS = Number(process.env.REQUESTS ?? 25)

/** Requests on each connection before anything is measured: some ten thousand until all code is compiled. */
const WARM_REQUESTS = 1000

const chat = { model: 'm', stream: true, messages: [{ role: 'user', content: 'Say hello to the world.' }] }
const request = postBytes('/v1/chat/completions', { ...chat, max_tokens: TOKENS })
const shortRequest = postBytes('/v1/chat/completions', { ...chat, max_tokens: 1 })

/** Runs REQUESTS requests one after the other on each connection, which start apart; milliseconds to the first token. */
async function measure(
  one: (connection: number) => Promise<(onFirst: () => void) => Promise<void>>,
): Promise<number[]> {
  const samples: number[] = []
  const worker = async (connection: number): Promise<void> => {
    const run = await one(connection)
    await new Promise((resolve) => setTimeout(resolve, (connection * STEP_MS * TOKENS) / CONNECTIONS))
    for (let i = 0; i < REQUESTS; i++) {
      const sent = performance.now()
      await run(() => samples.push(performance.now() - sent))
    }
  }
  await Promise.all(Array.from({ length: CONNECTIONS }, (_, connection) => worker(connection)))
  return samples
}

const gateway = await startGateway(STEP_MS)
const dir = mkdtempSync(join(tmpdir(), 'es-bench-'))
const socket = join(dir, 'engine.sock')
writeFileSync(join(dir, 'models.yaml'), 'models: [{ id: m, variants: [{ precision: int4, path: none.gguf }] }]\n')
const engineArgs = ['--import', 'tsx', at('test/support/scripted-engine.ts'), '--config', join(dir, 'models.yaml')]
const engine = spawn(process.execPath, [...engineArgs, '--socket', socket], {
  stdio: ['pipe', 'ignore', 'inherit'],
  env: { ...process.env, STEP_MS: String(STEP_MS) },
})
const client = openClient(socket)
await waitForReady(client, 20_000)
const ignore = { onStatus: () => undefined, onStep: () => undefined, onEnd: () => undefined }
const session = new EngineSession(client.session(), ignore)
const prompt = Array.from({ length: 60 }, (_, i) => i + 3)
const submission = {
  variant: 'm:int4',
  prompt,
  maxTokens: TOKENS,
  priority: 0,
  tenant: '',
  weight: 1,
  deadlineMs: 0,
  traceparent: '',
  replayedTokens: 0,
  promptLogprobs: false,
}

const direct = (): Promise<(onFirst: () => void) => Promise<void>> =>
  Promise.resolve(
    (onFirst) =>
      new Promise((resolve, reject) => {
        let first = true
        session.submit(submission, {
          onLost: reject,
          onDelta: ({ finishReason }) => {
            if (first) onFirst()
            first = false
            if (finishReason !== FinishReason.UNSPECIFIED) resolve()
          },
        })
      }),
  )
const through = async (): Promise<(onFirst: () => void) => Promise<void>> => {
  const connection = await RawConnection.open(gateway.http)
  return (onFirst) => connection.stream(request, '"delta":{"content"', onFirst)
}

async function warmUp(): Promise<void> {
  const connection = await RawConnection.open(gateway.http)
  for (let i = 0; i < WARM_REQUESTS; i++) await connection.stream(shortRequest, '"delta":{"content"', () => undefined)
  connection.close()
}

await Promise.all(Array.from({ length: CONNECTIONS }, warmUp))
await measure(through)
const samples = { direct: [] as number[], through: [] as number[] }
for (let round = 0; round < ROUNDS; round++) {
  samples.direct.push(...(await measure(direct)))
  samples.through.push(...(await measure(through)))
}
for (const share of [0.5, 0.9, 0.99]) {
  const [a, b] = [percentile(samples.direct, share), percentile(samples.through, share)]
  console.log(`p${share * 100}: direct ${short(a)} ms, through the gateway ${short(b)} ms, added ${short(b - a)} ms`)
}
console.log(`${samples.through.length} requests each`)
session.close('done')
client.close()
engine.kill()
await gateway.close()
rmSync(dir, { recursive: true })
process.exit(0)
