/**
 * The system's clock jumps by hours and days, forty times a second, in gateway and engine: no answer changes, nothing ends
 * early, and what is due ends on time. Everything that waits goes by the monotonic clock.
 */
import { afterEach, describe, expect, it } from 'vitest'
import { AnyProtocol, type Job, WAYS } from '../support/any-protocol.js'
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'
import { LadderAnswers } from '../support/ladder-answers.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { shippedKind } from '../support/test-device.js'

const CLOCK = new URL('../support/jumping-clock.mjs', import.meta.url).href
const JUMPING = { NODE_OPTIONS: `--import=${CLOCK}` }
const SENTENCE = 'The quick brown fox. '

const running: GatewayProcess[] = []
afterEach(async () => {
  await Promise.all(running.splice(0).map((gateway) => gateway.close()))
})

/** A second model that is unloaded soon after its last request. */
const withBrief = (config: string): string =>
  config.replace(
    /^models:\n/m,
    `models:\n  - { id: brief, max_model_len: 256, variants: [{ precision: int4, path: ${JSON.stringify(SMOLLM2_FILE)} }], placement: { keep_alive: 500ms } }\n`,
  )

const JOBS: readonly Job[] = [0, 1, 2].map((seed) => ({
  content: `Name ${seed + 2} colours.`,
  seed,
  temperature: seed === 0 ? 0 : 0.9,
  frequency_penalty: 0,
  maxTokens: 16,
}))

/** The answer of every job in every way, by jobs; `onNews` at every event. */
async function answers(box: GatewayProcess, onNews: () => void): Promise<string[]> {
  const clients = new AnyProtocol(box)
  const all = JOBS.flatMap((job) => Array.from({ length: WAYS }, (_, way) => clients.ask(way, job, onNews)))
  const texts = (await Promise.all(all)).map(({ text }) => text)
  clients.close()
  return texts
}

/** The texts, with the expected one in place of each that parts from it at near ties only, as it may on a GPU. */
async function likeUsual(texts: readonly string[], expected: readonly string[]): Promise<string[]> {
  if (shippedKind() === 'cpu') return [...texts]
  const ladder = await LadderAnswers.open()
  const segments = [{ variant: 'smollm2:int4', from: 0 }]
  const like: string[] = []
  for (const [i, text] of texts.entries()) {
    const usual = expected[i] ?? ''
    const job = JOBS[Math.floor(i / WAYS)] as Job
    // oxlint-disable-next-line no-await-in-loop -- most texts need no look
    like.push(text !== usual && (await ladder.gives(job, segments, text)) ? usual : text)
  }
  await ladder.close()
  return like
}

async function start(env: Record<string, string>): Promise<GatewayProcess> {
  const box = await GatewayProcess.startShipped((config) => withBrief(onlyRung('int4')(config)), undefined, env).ready()
  running.push(box)
  return box
}

async function stateOf(box: GatewayProcess, name: string): Promise<string | undefined> {
  const answer = (await (await fetch(`${box.url}/admin/models`)).json()) as {
    variants: { name: string; state: string }[]
  }
  return answer.variants.find((variant) => variant.name === name)?.state
}

describe('while the clock jumps', { timeout: 90_000 }, () => {
  it('a killed engine costs no answer a token, and an idle model is unloaded on time', async () => {
    const steady = await start({})
    const expected = await answers(steady, () => undefined)
    await steady.close()
    const box = await start(JUMPING)
    let news = 0
    const texts = await answers(box, () => {
      if (++news === 20) process.kill(box.enginePids.at(-1) ?? 0, 'SIGKILL')
    })
    expect(await likeUsual(texts, expected)).toEqual(expected)
    expect(box.enginePids).toHaveLength(2)
    let brief = await stateOf(box, 'brief:int4')
    while (brief !== 'unloaded') brief = await stateOf(box, 'brief:int4')
    expect(await stateOf(box, 'smollm2:int4')).toBe('ready')
  })

  it('a deadline ends an answer in its middle no earlier than it says, or refuses it: by its name in either way', async () => {
    const box = await start(JUMPING)
    const whole = textOf(await (await post(box, {}, 24, 'smollm2')).text())
    expect(whole.length).toBeGreaterThan(20)
    const deadlineMs = 1500
    const startedAt = performance.now()
    // More than any machine computes in that time.
    const late = await post(box, { 'x-edgeshift-deadline-ms': `${deadlineMs}` }, 8000, 'smollm2')
    const answer = await late.text()
    const elapsedMs = performance.now() - startedAt
    expect(answer).toContain('"code":"deadline_exceeded"')
    expect(answer).not.toContain('[DONE]')
    // A slow machine knows before the first token that it would come too late.
    const begun = late.status === 200
    expect(late.status).toBe(begun ? 200 : 408)
    const text = textOf(answer)
    const common = Math.min(text.length, whole.length)
    expect(text.slice(0, common)).toBe(whole.slice(0, common))
    // What is left of it is handed on in whole milliseconds.
    expect(begun ? elapsedMs : deadlineMs).toBeGreaterThan(deadlineMs - 5)
    expect(box.enginePids).toHaveLength(1)
    expect(textOf(await (await post(box, {}, 24, 'smollm2')).text())).toBe(whole)
  })

  it('streams with a deadline, without a reader for a while, and an engine that must answer go on', async () => {
    const server = '{ http: "127.0.0.1:0", grpc: "127.0.0.1:0", engine_timeout: 5s, resume_grace: 60s }'
    const box = await GatewayProcess.start({ ...JUMPING, STEP_MS: '10' }, server).ready()
    running.push(box)
    const { id, reader } = await ask(box, { 'x-edgeshift-deadline-ms': '60000' }, 150)
    await reader.cancel()
    const resumed = await fetch(`${box.url}/v1/streams/${id}`)
    expect(textOf(await resumed.text())).toBe(SENTENCE.repeat(8).slice(0, 150))
    expect(box.enginePids).toHaveLength(1)
  })

  it('what nobody reads is forgotten on time', async () => {
    const server = '{ http: "127.0.0.1:0", grpc: "127.0.0.1:0", resume_grace: 300ms }'
    const box = await GatewayProcess.start({ ...JUMPING, STEP_MS: '10' }, server).ready()
    running.push(box)
    const left = await ask(box, {}, 5000)
    await left.reader.cancel()
    while (!/^edgeshift_num_requests_in_flight 0$/m.test(await metricsOf(box)));
    // It would have taken 50 s to its end.
    const [, tokens] = /^edgeshift_generation_tokens_total\{.*\} (\d+)$/m.exec(await metricsOf(box)) ?? []
    expect(Number(tokens)).toBeLessThan(2000)
  })
})

const metricsOf = async ({ url }: GatewayProcess): Promise<string> => (await fetch(`${url}/metrics`)).text()

const textOf = (stream: string): string =>
  [...stream.matchAll(/"content":"([^"]*)"/g)].map(([, piece]) => piece).join('')

function post(
  box: GatewayProcess,
  headers: Record<string, string>,
  maxTokens: number,
  model: string,
): Promise<Response> {
  return fetch(`${box.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({
      model,
      ignore_eos: true,
      stream: true,
      resumable: true,
      seed: 1,
      temperature: 0,
      max_tokens: maxTokens,
      messages: [{ role: 'user', content: 'Hello' }],
    }),
  })
}

/** Starts a resumable stream and reads until its first event with a number. */
async function ask(
  box: GatewayProcess,
  headers: Record<string, string>,
  maxTokens: number,
): Promise<{ id: string; reader: ReadableStreamDefaultReader<string> }> {
  const response = await post(box, headers, maxTokens, 'm')
  if (response.body === null) throw new Error('the answer has no body')
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  while (!/^id: \S+:\d+$/m.test(text)) {
    const part = await reader.read()
    if (part.done) throw new Error(`no event with a number: ${text}`)
    text += part.value
  }
  return { id: /^id: (\S+):\d+$/m.exec(text)?.[1] ?? '', reader }
}
