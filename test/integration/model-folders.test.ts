/** Models given by nothing but a path, in several formats at once, through the whole program. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { GatewayProcess } from '../support/gateway-process.js'
import { goldenFolder, goldenPrompts } from '../support/golden.js'

const MODELS: [id: string, folder: string][] = [
  ['qwen3', goldenFolder('plain/qwen3')],
  ['gemma3', goldenFolder('families/gemma3_text')],
  ['gptq', goldenFolder('gptq/w4_g128_sym_actorder')],
  ['awq', goldenFolder('awq/w4_g128')],
  ['broken', new URL('../fixtures/hostile/gptq/scales_groups', import.meta.url).pathname],
]

const config = (): string => {
  const models = MODELS.map(([id, path]) => `  - { id: ${id}, variants: [{ path: ${JSON.stringify(path)} }] }`)
  models.push(
    `  - { id: derived, variants: [{ path: ${JSON.stringify(goldenFolder('plain/qwen3'))} }, { precision: int4, from: fp16 }] }`,
  )
  return `server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0" }\nmodels:\n${models.join('\n')}\n`
}

let box: GatewayProcess
beforeAll(async () => {
  box = await GatewayProcess.startShipped(config).ready()
})
afterAll(() => box.close())

interface Rung {
  id: string
  status: string
  derivation?: { method: string; group_size: number; relative_error: number }
  error?: string
}

test('each is served at the rung its files are stored in; a broken one fails alone', async () => {
  const response = await fetch(`${box.url}/v1/models`)
  const { data } = (await response.json()) as { data: { id: string; variants: Rung[] }[] }
  const rungs = data.flatMap(({ variants }) => variants.map(({ id, status }) => `${id} ${status}`))
  expect(rungs).toEqual([
    'qwen3:fp16 ready',
    'gemma3:fp16 ready',
    'gptq:int4 ready',
    'awq:int4 ready',
    'broken:fp16 failed',
    'derived:fp16 ready',
    'derived:int4 ready',
  ])
  const derived = data.find(({ id }) => id === 'derived')?.variants
  expect(derived?.map(({ derivation }) => derivation?.method)).toEqual([undefined, 'round_to_nearest'])
  // Random weights: a sixteenth of the range of 32 of them, and the head in 8 bits.
  expect(derived?.[1]?.derivation?.relative_error).toBeGreaterThan(0.03)
  expect(derived?.[1]?.derivation?.relative_error).toBeLessThan(0.12)
})

test.each([
  ['qwen3', 'plain/qwen3'],
  ['gemma3', 'families/gemma3_text'],
])('%s gives the token that the reference finds most likely', async (model, name) => {
  for (const { ids, logits } of goldenPrompts(name)) {
    const body = { model, prompt: ids, max_tokens: 1, temperature: 0, return_token_ids: true, ignore_eos: true }
    const response = await fetch(`${box.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    })
    const { choices } = (await response.json()) as { choices: { token_ids: number[] }[] }
    expect(choices[0]?.token_ids).toEqual([logits.indexOf(Math.max(...logits))])
  }
})

test('the broken one is refused, quantized ones answer', async () => {
  const ask = async (model: string) => {
    const response = await fetch(`${box.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model, prompt: 'Hello', max_tokens: 1 }),
    })
    return { status: response.status, body: await response.text() }
  }
  expect((await ask('awq')).status).toBe(200)
  const broken = await ask('broken')
  expect(broken.status).toBe(503)
})
