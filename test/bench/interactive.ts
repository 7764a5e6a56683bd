/**
 * Interactive requests beside batch work on the embedded model: time to first token alone, beside whole answers, beside
 * streams of the same priority, and beside long prompts with a latency goal and without; and what is left for the batch.
 * `npm run bench:interactive`
 */
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'
import { percentile } from './figures.js'

const PHASE_MS = 20_000
const BATCH_CLIENTS = 16
const SLOTS = 8
const PAUSE_MS = 250
const SENTENCE = ' The quick brown fox jumps over the lazy dog while the sun sets behind the old mill.'

/** What batch clients ask for again and again. */
interface Work {
  stream: boolean
  max_tokens: number
  /** Sentences of the prompt. */
  sentences: number
}

const ANSWERS: Work = { stream: false, max_tokens: 256, sentences: 0 }
const STREAMS: Work = { stream: true, max_tokens: 256, sentences: 0 }
const PROMPTS: Work = { stream: false, max_tokens: 2, sentences: 40 }

let prompts = 0

/** No two prompts begin alike: the prefix cache has nothing to say here. */
function promptOf(sentences: number): string {
  return `${prompts++}. Once upon a time${SENTENCE.repeat(sentences)}`
}

/** Asks for one completion and reads it; `onFirst` is called at its first piece. */
async function complete(url: string, work: Work, signal: AbortSignal, onFirst: () => void): Promise<void> {
  const { sentences, ...fields } = work
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'smollm2', prompt: promptOf(sentences), ignore_eos: true, ...fields }),
    signal,
  })
  if (response.status !== 200) throw new Error(`status ${response.status}: ${await response.text()}`)
  let text = ''
  const decoder = new TextDecoder()
  for await (const bytes of response.body ?? []) {
    text += decoder.decode(bytes, { stream: true })
    if (text.includes('"text":"')) onFirst()
  }
}

/** Tokens that the engine has computed, prompts and answers. */
async function computed(url: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text()
  return Number(/^edgeshift_engine_step_tokens\S* (\d+)/m.exec(text)?.[1])
}

/** Keeps batch clients busy until `signal` aborts; resolves to the engine's tokens per second meanwhile. */
async function batch(url: string, work: Work, signal: AbortSignal): Promise<number> {
  const start = performance.now()
  const before = await computed(url)
  const client = async (): Promise<void> => {
    while (!signal.aborted) {
      await complete(url, work, signal, () => {}).catch((error: unknown) => {
        if (!signal.aborted) throw error
      })
    }
  }
  await Promise.all(Array.from({ length: BATCH_CLIENTS }, client))
  return ((await computed(url)) - before) / ((performance.now() - start) / 1000)
}

/** One interactive client that asks, reads and thinks; resolves to its times to the first token, milliseconds. */
async function interactive(url: string, signal: AbortSignal): Promise<number[]> {
  const firsts: number[] = []
  while (!signal.aborted) {
    const start = performance.now()
    let first = -1
    const told = (): void => {
      if (first < 0) first = performance.now() - start
    }
    await complete(url, { stream: true, max_tokens: 4, sentences: 0 }, signal, told).catch((error: unknown) => {
      if (!signal.aborted) throw error
      // Still waiting at the end: it waited at least so long.
      told()
    })
    firsts.push(first)
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
  }
  return firsts
}

function report(name: string, firsts: readonly number[], tokensPerSecond?: number): void {
  const at = (share: number): string => percentile(firsts, share).toFixed(0)
  const waits = `first token p50 ${at(0.5)} ms, p90 ${at(0.9)} ms, worst ${at(1)} ms of ${firsts.length}`
  const rate = tokensPerSecond === undefined ? [] : [`${tokensPerSecond.toFixed(1)} tokens/s in all`]
  console.log(`${name}: ${[...(firsts.length > 0 ? [waits] : []), ...rate].join('; ')}`)
}

const phase = (): AbortSignal => AbortSignal.timeout(PHASE_MS)

async function beside(url: string, name: string, work: Work): Promise<void> {
  const signal = phase()
  const [firsts, rate] = await Promise.all([interactive(url, signal), batch(url, work, signal)])
  report(`beside ${name}`, firsts, rate)
}

/** Runs phases against a gateway of its own with that goal. */
async function withGoal(goal: string, phases: (url: string) => Promise<void>): Promise<void> {
  const gateway = GatewayProcess.startShipped(
    (config) => `${onlyRung('int4')(config)}\nscheduler: { max_num_seqs: ${SLOTS}, interactive_goal: ${goal} }\n`,
  )
  try {
    await gateway.ready()
    await phases(gateway.url)
  } finally {
    await gateway.close()
  }
}

await withGoal('300ms', async (url) => {
  report('interactive alone', await interactive(url, phase()))
  report('batch of whole answers alone', [], await batch(url, ANSWERS, phase()))
  await beside(url, 'whole answers', ANSWERS)
  await beside(url, 'streams of the same priority', STREAMS)
})
await withGoal('0ms', async (url) => {
  report('batch of long prompts alone', [], await batch(url, PROMPTS, phase()))
  await beside(url, 'long prompts, no goal', PROMPTS)
})
await withGoal('300ms', (url) => beside(url, 'long prompts, goal 300 ms', PROMPTS))
await withGoal('150ms', (url) => beside(url, 'long prompts, goal 150 ms', PROMPTS))
