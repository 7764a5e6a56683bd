/**
 * A client that does not read, with the embedded model: its answers come to a halt, others are served beside them, and
 * when it reads again it gets all of what it would have got at once.
 */
import { once } from 'node:events'
import { connect } from 'node:net'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'
import { rawPost } from '../support/raw-http.js'
import { shippedKind } from '../support/test-device.js'

const CHOICES = 8
const TOKENS = 450
/** More than the system buffers: each token comes with twenty alternatives. */
const BODY = JSON.stringify({
  model: 'smollm2',
  stream: true,
  stream_options: { include_usage: true },
  n: CHOICES,
  max_tokens: TOKENS,
  ignore_eos: true,
  seed: 5,
  logprobs: true,
  top_logprobs: 20,
  messages: [{ role: 'user', content: 'Tell me a long story about a fox.' }],
})
const OTHER_TOKENS = 8

const chunkSchema = z.object({
  choices: z.array(z.object({ index: z.int(), delta: z.object({ content: z.string().optional() }) })),
  usage: z.object({ completion_tokens: z.int() }).nullish(),
})

let gateway: GatewayProcess

beforeAll(async () => {
  gateway = await GatewayProcess.startShipped(onlyRung('int4')).ready()
}, 120_000)
afterAll(() => gateway.close())

/** Tokens of all answers so far. */
async function told(): Promise<number> {
  const text = await (await fetch(`${gateway.url}/metrics`)).text()
  const counts = [...text.matchAll(/^edgeshift_generation_tokens_total(?:\{.*\})? (\d+)$/gm)]
  return counts.reduce((sum, [, count]) => sum + Number(count), 0)
}

/** The text of each choice of a stream, and its usage. */
function answersIn(stream: string): { texts: string[]; tokens: number } {
  const texts = Array.from({ length: CHOICES }, () => '')
  let tokens = 0
  for (const [, json = ''] of stream.matchAll(/^data: (\{.*\})\r?$/gm)) {
    const { choices, usage } = chunkSchema.parse(JSON.parse(json))
    for (const { index, delta } of choices) texts[index] += delta.content ?? ''
    tokens += usage?.completion_tokens ?? 0
  }
  return { texts, tokens }
}

async function askOther(): Promise<void> {
  const body = {
    model: 'smollm2',
    max_tokens: OTHER_TOKENS,
    ignore_eos: true,
    messages: [{ role: 'user', content: 'Hi' }],
  }
  const headers = { 'content-type': 'application/json' }
  const response = await fetch(`${gateway.url}/v1/chat/completions`, {
    method: 'POST',
    headers,
    body: JSON.stringify(body),
  })
  expect(response.status).toBe(200)
  await response.json()
}

describe('a slow reader', { timeout: 180_000 }, () => {
  it('holds up nobody but itself and loses nothing', async () => {
    const headers = { 'content-type': 'application/json' }
    const quick = await fetch(`${gateway.url}/v1/chat/completions`, { method: 'POST', headers, body: BODY })
    const expected = answersIn(await quick.text())
    expect(expected.tokens).toBe(CHOICES * TOKENS)

    const before = await told()
    const socket = connect(Number(new URL(gateway.url).port), '127.0.0.1')
    await once(socket, 'connect')
    socket.write(rawPost('/v1/chat/completions', BODY, { connection: 'close' }))
    // At a halt: others are served whole, and theirs are all the tokens that come.
    let others = 0
    for (let last = -1, now = 0; now !== last + OTHER_TOKENS || now === 0;) {
      last = now
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await askOther()
      others++
      // oxlint-disable-next-line no-await-in-loop
      now = (await told()) - before
    }
    const halted = (await told()) - before - others * OTHER_TOKENS
    expect(halted).toBeGreaterThan(0)
    expect(halted).toBeLessThan(CHOICES * TOKENS)

    let text = ''
    socket.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
    await once(socket, 'close')
    const answers = answersIn(text)
    expect(answers.tokens).toBe(CHOICES * TOKENS)
    expect(text).toContain('data: [DONE]')
    // On a GPU the batch it goes on in may turn a near tie.
    const same = answers.texts.map((answer, i) => shippedKind() !== 'cpu' || answer === expected.texts[i])
    expect(same).not.toContain(false)
  })
})
