/** Many clients at once on the embedded model: nobody's text changes, nothing is left behind. */
import { readdirSync, readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { eventually, GatewayProcess, onlyRung } from '../support/gateway-process.js'

const MODEL = 'smollm2:int4'

let box: GatewayProcess

beforeAll(async () => {
  box = await GatewayProcess.startShipped(onlyRung('int4')).ready()
})
afterAll(() => box.close())

interface Asked {
  prompt: string
  maxTokens: number
  seed: number
}

function post(asked: Asked, signal?: AbortSignal): Promise<Response> {
  return fetch(`${box.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: MODEL,
      prompt: asked.prompt,
      max_tokens: asked.maxTokens,
      seed: asked.seed,
      temperature: 0.8,
      ignore_eos: true,
      stream: true,
      return_token_ids: true,
    }),
    ...(signal && { signal }),
  })
}

/** Text and token count of a whole stream; throws unless it ends as it should. */
async function readStream(response: Response): Promise<{ text: string; tokens: number }> {
  const body = await response.text()
  const events = body.split('\n\n').filter((event) => event.startsWith('data: '))
  expect(events.pop()).toBe('data: [DONE]')
  let text = ''
  let tokens = 0
  for (const event of events) {
    const chunk = JSON.parse(event.slice('data: '.length)) as { choices: { text: string; token_ids?: number[] }[] }
    text += chunk.choices[0]?.text ?? ''
    tokens += chunk.choices[0]?.token_ids?.length ?? 0
  }
  return { text, tokens }
}

async function metric(name: string): Promise<number> {
  const text = await (await fetch(`${box.url}/metrics`)).text()
  const values = [...text.matchAll(new RegExp(`^edgeshift_${name}(?:\\{.*\\})? (\\S+)$`, 'gm'))]
  if (values.length === 0) throw new Error(`no metric ${name}`)
  return values.reduce((sum, [, value]) => sum + Number(value), 0)
}

async function idle(): Promise<void> {
  const until = performance.now() + 10_000
  while ((await metric('num_requests_running')) + (await metric('num_requests_waiting')) > 0) {
    if (performance.now() > until) throw new Error('the engine does not become idle')
  }
}

function descriptors(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length
}

it('completes 64 concurrent streams of mixed lengths, each as when alone', async () => {
  const asked = Array.from({ length: 64 }, (_, i) => ({
    prompt: 'The quick brown fox jumps over the lazy dog. '.repeat(1 + (i % 7)) + `Number ${i}:`,
    maxTokens: 4 + ((i * 5) % 29),
    seed: i,
  }))
  const together = await Promise.all(asked.map(async (one) => readStream(await post(one))))
  expect(together.map(({ tokens }) => tokens)).toEqual(asked.map(({ maxTokens }) => maxTokens))
  const some = <T>(all: readonly T[]): T[] => all.filter((_, i) => i % 11 === 0)
  const alone: unknown[] = []
  for (const one of some(asked)) alone.push(await readStream(await post(one)))
  expect(alone).toEqual(some(together))
  await idle()
  expect(await metric('kv_cache_usage')).toBe(0)
}, 120_000)

it('leaves nothing of 1,000 clients that go away', async () => {
  const [enginePid = 0] = box.enginePids
  await readStream(await post({ prompt: 'Warm', maxTokens: 2, seed: 1 }))
  await idle()
  const before = [descriptors(box.pid), descriptors(enginePid)]
  const leave = async (i: number): Promise<void> => {
    const controller = new AbortController()
    const response = post({ prompt: `Client ${i} says`, maxTokens: 500, seed: i }, controller.signal)
    // A third leaves before the answer begins, a third with its headers, a third in the middle.
    if (i % 3 === 0) setImmediate(() => controller.abort())
    else if (i % 3 === 1) void response.then(() => controller.abort()).catch(() => undefined)
    else
      void response
        .then((r) => r.body?.getReader().read())
        .then(() => controller.abort())
        .catch(() => undefined)
    await response.then((r) => r.text()).catch(() => undefined)
  }
  let next = 0
  const client = async (): Promise<void> => {
    while (next < 1000) await leave(next++)
  }
  await Promise.all(Array.from({ length: 16 }, client))
  await idle()
  expect(await metric('kv_cache_usage')).toBe(0)
  // Sockets that the client side of this test keeps alive close in their own time.
  await eventually(() => descriptors(box.pid) <= (before[0] ?? 0) + 16, 'the gateway closes its sockets')
  expect(descriptors(enginePid)).toBe(before[1])
  expect(await readStream(await post({ prompt: 'After', maxTokens: 3, seed: 1 }))).toMatchObject({ tokens: 3 })
}, 120_000)

const BAD_BODIES: readonly [body: string | Buffer, status: number][] = [
  ['{"model": "smollm2", "prompt": ', 400],
  ['[1, 2, 3]', 400],
  [Buffer.from('{"model": "smollm2", "prompt": "\xff\xfe"}', 'latin1'), 400],
  [`{"model": "smollm2", "prompt": "x", "temperature": 1e400}`, 400],
  [`{"model": "smollm2", "prompt": "x", "max_tokens": -1}`, 400],
  [`{"model": "smollm2", "prompt": ${'['.repeat(20_000)}}`, 400],
  [`{"model": "smollm2", "prompt": "${'word '.repeat(100_000)}"}`, 400],
  [`{"model": "smollm2", "prompt": [${'0,'.repeat(20_000)}0]}`, 400],
  [`{"model": "nobody", "prompt": "x"}`, 404],
  [`{"model": "smollm2", "prompt": "${'x'.repeat(17_000_000)}"}`, 413],
]

it('refuses a barrage of bad bodies and returns to its memory', async () => {
  const residentBytes = (): number =>
    Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${box.pid}/status`, 'utf8'))?.[1]) * 1024
  const send = async ([body, status]: (typeof BAD_BODIES)[number]): Promise<void> => {
    const headers = { 'content-type': 'application/json' }
    // A body that is too large may be refused before it is read, which the client sees as a broken write.
    const response = await fetch(`${box.url}/v1/completions`, { method: 'POST', headers, body }).catch(() => undefined)
    expect(response?.status ?? 413).toBe(status)
    await response?.text()
  }
  const barrage = async (rounds: number): Promise<void> => {
    for (let i = 0; i < rounds; i++) await Promise.all(BAD_BODIES.map(send))
  }
  await barrage(5)
  const before = residentBytes()
  await barrage(20)
  // The 20 large bodies alone are 340 MB; what the garbage collector has not returned yet is well below half of it.
  expect(residentBytes() - before).toBeLessThan(160 * 1024 * 1024)
  expect(await readStream(await post({ prompt: 'After', maxTokens: 3, seed: 1 }))).toMatchObject({ tokens: 3 })
}, 120_000)
