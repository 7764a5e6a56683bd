/** Measures a model through the whole stack: a gateway and an engine of its own, one streamed request at a time. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import type { Precision } from '../native.js'
import { type BenchPlan, type BenchRow, rowOf, withShare } from './bench.js'

const START_MS = 600_000
const POLL_MS = 20

/** How to run the gateway's command line. */
export interface ServeCommand {
  command: string
  args: readonly string[]
}

interface Stream {
  firstMs: number
  decodeMs: number
  tokens: number
}

function configOf(path: string, precision: Precision, { device }: BenchPlan): string {
  const place = device.kind === 'cpu' ? `threads: ${device.threads}, memory_gb: 64` : `index: ${device.index}`
  return JSON.stringify({
    server: { http: '127.0.0.1:0', grpc: '127.0.0.1:0' },
    devices: ['DEVICE'],
    models: [{ id: 'bench', variants: [{ precision, path: resolve(path) }] }],
  }).replace('"DEVICE"', `{ id: d, kind: ${device.kind}, ${place} }`)
}

/** The address that the gateway prints once it serves. */
async function addressOf(gateway: ChildProcess): Promise<string> {
  if (gateway.stdout === null) throw new Error('the gateway has no output')
  for await (const line of createInterface({ input: gateway.stdout })) {
    const address = /HTTP\s+(http:\S+)/.exec(line)?.[1]
    if (address !== undefined) return address
  }
  throw new Error('the gateway ended before it served')
}

async function ready(address: string): Promise<void> {
  const until = performance.now() + START_MS
  while (performance.now() < until) {
    // oxlint-disable-next-line no-await-in-loop -- until it answers
    const { ok } = await fetch(`${address}/health`)
    if (ok) return
    // oxlint-disable-next-line no-await-in-loop -- a client's own waiting
    await new Promise((done) => setTimeout(done, POLL_MS))
  }
  throw new Error('the model was not loaded in time')
}

/** One streamed completion; `words` make the prompt. */
async function stream(address: string, words: number, tokens: number): Promise<Stream> {
  const start = performance.now()
  const response = await fetch(`${address}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: 'bench',
      stream: true,
      stream_options: { include_usage: true },
      temperature: 0,
      max_tokens: tokens,
      // The end of a text is banned: random weights would find it some time.
      logit_bias: { 0: -100 },
      messages: [{ role: 'user', content: 'w'.repeat(words) }],
    }),
  })
  if (!response.ok || response.body === null) throw new Error(`${response.status}: ${await response.text()}`)
  let first = 0
  let last = 0
  let used = 0
  let text = ''
  const decoder = new TextDecoder()
  for await (const part of response.body) {
    text += decoder.decode(part, { stream: true })
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const line = text.slice(0, end)
      text = text.slice(end + 2)
      used = Number(/"completion_tokens":(\d+)/.exec(line)?.[1] ?? used)
      if (!/"content":"[^"]/.test(line)) continue
      last = performance.now()
      if (first === 0) first = last
    }
  }
  return { firstMs: first - start, decodeMs: last - first, tokens: used }
}

/**
 * Serves the model and streams at batch 1; the rows go to `report`, the start of the processes among them. `reads` says
 * what a step reads and what the device could (withShare).
 */
export async function benchHttp(
  serve: ServeCommand,
  path: string,
  precision: Precision,
  plan: BenchPlan,
  reads: { bytes: number; bandwidth: number },
  report: (row: BenchRow) => void,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'edgeshift-bench-'))
  writeFileSync(join(folder, 'models.yaml'), configOf(path, precision, plan))
  const start = performance.now()
  const args = [...serve.args, 'serve', '--config', join(folder, 'models.yaml'), '--log-level', 'error']
  const gateway = spawn(serve.command, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise((done) => gateway.once('close', done))
  // Without it the stream under way fails, and with it the bench.
  const stop = (): void => void gateway.kill('SIGTERM')
  process.once('SIGTERM', stop)
  try {
    const address = await addressOf(gateway)
    await ready(address)
    await stream(address, plan.context, 1)
    const row = { through: 'stack' as const, batch: 1, tokens: 1 }
    report(rowOf({ ...row, phase: 'load' }, [performance.now() - start]))
    const runs: Stream[] = []
    for (let i = 0; i <= plan.repeat; i++) {
      // oxlint-disable-next-line no-await-in-loop -- one at a time
      const run = await stream(address, plan.context, plan.steps + 1)
      if (i > 0) runs.push(run)
    }
    const perToken = runs.map(({ decodeMs, tokens }) => decodeMs / Math.max(1, tokens - 1))
    report(
      rowOf(
        { ...row, phase: 'first token' },
        runs.map(({ firstMs }) => firstMs),
      ),
    )
    report(withShare(rowOf({ ...row, phase: 'decode' }, perToken), reads.bytes, reads.bandwidth))
  } finally {
    stop()
    await ended
    process.off('SIGTERM', stop)
    rmSync(folder, { recursive: true, force: true })
  }
}
