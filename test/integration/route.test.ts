import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { fakeServices } from '../support/fake-services.js'
import { serveHttp, type TestServer } from '../support/http-server.js'

const services = fakeServices()
let server: TestServer

beforeAll(async () => {
  server = await serveHttp(services)
})
afterAll(() => server.close())

async function ask(body: object, headers: Record<string, string> = {}): Promise<{ status: number; json: unknown }> {
  const response = await fetch(`${server.url}/v1/route`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
  })
  return { status: response.status, json: await response.json() }
}

const messages = [{ role: 'user', content: 'What is the capital of France?' }]

describe('POST /v1/route', () => {
  it.each([
    ['a chat', { model: 'chat', messages, stream: true, temperature: 0.5 }, 30],
    ['a completion', { model: 'fake', prompt: 'What is' }, 7],
    ['token ids', { model: 'fake', prompt: [1, 2, 3] }, 3],
    ['a size', { model: 'fake', prompt_tokens: 12, max_tokens: 8 }, 12],
    ['auto', { model: 'auto', messages }, 30],
  ])('decides for %s and runs nothing', async (_, body, promptTokens) => {
    const { status, json } = await ask(body)
    expect(status).toBe(200)
    expect(json).toMatchObject({ decision: 'serve', variant: 'fake:int4', prompt_tokens: promptTokens, load: null })
    expect(services.generator.runs).toEqual([])
  })

  it('takes needs as fields and headers, and answers a refusal like any decision', async () => {
    const refused = { decision: 'refuse', code: 'degrade_forbidden' }
    const asField = await ask({ model: 'fake', degrade: 'forbid' })
    const asHeader = await ask({ model: 'fake' }, { 'x-edgeshift-degrade': 'forbid' })
    expect(asField).toMatchObject({ status: 200, json: refused })
    expect(asHeader.json).toEqual(asField.json)
  })

  it.each([
    [{ model: 'nobody' }, 404],
    [{ model: 'fake', prompt_tokens: -1 }, 400],
    [{ model: 'fake', colour: 'red' }, 400],
    [{ model: 'fake', messages: [] }, 400],
  ])('refuses %j with %d', async (body, status) => {
    expect((await ask(body)).status).toBe(status)
  })
})
