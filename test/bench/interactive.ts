/**
 * Interactive requests beside batch work on the embedded model: time to first token alone, beside batch of a lower
 * priority, and beside batch of the same priority; and what is left for the batch. `npm run bench:interactive`
 */
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'
import { percentile } from './figures.js'

const PHASE_MS = 20_000
const BATCH_CLIENTS = 16
const SLOTS = 8
const PAUSE_MS = 250

/** Streams one completion and reports every chunk's tokens; ends without a word when `signal` aborts. */
async function complete(
  url: string,
  fields: { priority: number; max_tokens: number },
  signal: AbortSignal,
  onTokens: (count: number) => void,
): Promise<void> {
  const body = { model: 'smollm2', prompt: 'Once upon a time', stream: true, ignore_eos: true, return_token_ids: true }
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...body, ...fields }),
    signal,
  })
  if (response.status !== 200) throw new Error(`status ${response.status}: ${await response.text()}`)
  const decoder = new TextDecoder()
  let pending = ''
  for await (const bytes of response.body ?? []) {
    const events = (pending + decoder.decode(bytes, { stream: true })).split('\n\n')
    pending = events.pop() ?? ''
    for (const event of events) onTokens(/"token_ids":\[([^\]]+)\]/.exec(event)?.[1]?.split(',').length ?? 0)
  }
}

/** Keeps batch clients busy until `signal` aborts; resolves to their tokens per second. */
async function batch(url: string, priority: number, signal: AbortSignal): Promise<number> {
  const start = performance.now()
  let tokens = 0
  const client = async (): Promise<void> => {
    while (!signal.aborted) {
      await complete(url, { priority, max_tokens: 256 }, signal, (count) => (tokens += count)).catch(
        (error: unknown) => {
          if (!signal.aborted) throw error
        },
      )
    }
  }
  await Promise.all(Array.from({ length: BATCH_CLIENTS }, client))
  return tokens / ((performance.now() - start) / 1000)
}

/** One interactive client that asks, reads and thinks; resolves to its times to the first token, milliseconds. */
async function interactive(url: string, signal: AbortSignal): Promise<number[]> {
  const firsts: number[] = []
  while (!signal.aborted) {
    const start = performance.now()
    let first = -1
    await complete(url, { priority: 0, max_tokens: 4 }, signal, (count) => {
      if (first < 0 && count > 0) first = performance.now() - start
    }).catch((error: unknown) => {
      if (!signal.aborted) throw error
      // Still waiting at the end: it waited at least so long.
      if (first < 0) first = performance.now() - start
    })
    firsts.push(first)
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
  }
  return firsts
}

function report(name: string, firsts: readonly number[], tokensPerSecond?: number): void {
  const at = (share: number): string => percentile(firsts, share).toFixed(0)
  const waits = `first token p50 ${at(0.5)} ms, p90 ${at(0.9)} ms, worst ${at(1)} ms of ${firsts.length}`
  const rate = tokensPerSecond === undefined ? [] : [`batch ${tokensPerSecond.toFixed(1)} tokens/s`]
  console.log(`${name}: ${[...(firsts.length > 0 ? [waits] : []), ...rate].join('; ')}`)
}

const gateway = GatewayProcess.startShipped(
  (config) => `${onlyRung('int4')(config)}\nscheduler: { max_num_seqs: ${SLOTS} }\n`,
)
try {
  await gateway.ready()
  const { url } = gateway
  const phase = (): AbortSignal => AbortSignal.timeout(PHASE_MS)
  report('interactive alone', await interactive(url, phase()))
  report('batch alone', [], await batch(url, 10, phase()))
  for (const [name, priority] of [
    ['beside batch of priority 10', 10],
    ['beside batch of the same priority', 0],
  ] as const) {
    const signal = phase()
    const [firsts, rate] = await Promise.all([interactive(url, signal), batch(url, priority, signal)])
    report(name, firsts, rate)
  }
} finally {
  await gateway.close()
}
