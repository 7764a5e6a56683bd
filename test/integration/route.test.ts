/** The dry run over the three protocols. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { GenerateOptions, RouteRequest, type RouteResponse } from '../../proto/gen/edgeshift/v1/gateway.js'
import { fakeServices } from '../support/fake-services.js'
import { modelFacts } from '../support/router-facts.js'
import { serveThreeProtocols, type ThreeProtocols } from '../support/three-protocols.js'

const services = fakeServices()
let over: ThreeProtocols

beforeAll(async () => {
  over = await serveThreeProtocols(services)
})
afterAll(() => over.close())

async function ask(body: object, headers: Record<string, string> = {}): Promise<{ status: number; json: unknown }> {
  const response = await fetch(`${over.url}/v1/route`, {
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

/** A message of gateway.proto as the JSON of HTTP: names in snake case, what is absent or empty left out. */
function asJson(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(asJson)
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).filter(([, item]) => !isEmpty(item))
  return Object.fromEntries(
    entries.map(([name, item]) => [name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), asJson(item)]),
  )
}

function isEmpty(value: unknown): boolean {
  return value === undefined || value === null || value === '' || (Array.isArray(value) && value.length === 0)
}

async function overSocket(id: string, request: object): Promise<unknown> {
  over.socket.send({ type: 'route', id, request })
  const [message] = await over.socket.whole(id)
  return message
}

describe('over every protocol', () => {
  const far = { state: 'unloaded', loadable: true, loadMs: 2000, room: ['other:int8'], tokensPerSecond: 20 } as const
  beforeAll(() => {
    const models = [modelFacts('fake', [far, 'failed', 'ready']), modelFacts('other', ['ready', 'ready', 'open'])]
    services.models.list = () => models
  })

  const size = (model: string, promptTokens?: number, options: Partial<GenerateOptions> = {}) =>
    RouteRequest.fromPartial({ request: { $case: 'size', size: { model, promptTokens, options } } })
  const chat = { model: 'fake', messages: [{ role: 'user', content: 'What is the capital of France?' }] }

  it.each<[string, object, RouteRequest]>([
    ['a chat that would start a load', chat, RouteRequest.fromPartial({ request: { $case: 'chat', chat } })],
    [
      'a completion of a lower rung',
      { model: 'fake', prompt: 'What is', precision: 'low' },
      RouteRequest.fromPartial({
        request: {
          $case: 'completion',
          completion: { model: 'fake', prompt: { $case: 'text', text: 'What is' }, options: { precision: 'low' } },
        },
      }),
    ],
    [
      'a chat that asks for a grammar',
      { ...chat, structured_outputs: { choice: ['a', 'b'] } },
      RouteRequest.fromPartial({
        request: {
          $case: 'chat',
          chat: { ...chat, options: { grammar: { kind: { $case: 'choice', choice: { texts: ['a', 'b'] } } } } },
        },
      }),
    ],
    ['a size', { model: 'other', prompt_tokens: 12, max_tokens: 8 }, size('other', 12, { maxTokens: 8 })],
    ['auto', { model: 'auto', prompt_tokens: 5 }, size('auto', 5)],
    [
      'a refusal',
      { model: 'other', precision: 'int4', degrade: 'forbid' },
      size('other', undefined, { precision: 'int4', degrade: 'forbid' }),
    ],
  ])('is the same: %s', async (name, body, request) => {
    const { status, json } = await ask(body)
    expect(status).toBe(200)
    const response = await over.peer.unary<RouteResponse>((done) => over.peer.client.route(request, done))
    expect(asJson({ object: 'route', ...response })).toEqual(asJson(json))
    expect(await overSocket(name, body)).toEqual({ type: 'route', id: name, route: json })
    expect(services.generator.runs).toEqual([])
  })

  it.each<[object, RouteRequest, string, string]>([
    [{ model: 'nobody' }, size('nobody'), 'model_not_found', 'model'],
    [
      { model: 'fake', temperature: 1 },
      size('fake', undefined, { temperature: 1 }),
      'unsupported_parameter',
      'temperature',
    ],
  ])('is refused alike: %j', async (body, request, code, param) => {
    expect((await ask(body)).json).toMatchObject({ error: { code, param } })
    const refused = over.peer.unary<RouteResponse>((done) => over.peer.client.route(request, done))
    const error: unknown = await refused.catch((e: unknown) => e)
    expect(error).toHaveProperty('metadata')
    const { metadata } = Object(error)
    expect([metadata.get('edgeshift-error-code'), metadata.get('edgeshift-error-param')]).toEqual([[code], [param]])
    expect(await overSocket(code, body)).toMatchObject({ type: 'error', error: { code, param } })
  })

  it('needs a request', async () => {
    const empty = over.peer.unary<RouteResponse>((done) => over.peer.client.route(RouteRequest.fromPartial({}), done))
    await expect(empty).rejects.toMatchObject({ code: 3 })
    over.socket.send({ type: 'route', id: 'r' })
    expect((await over.socket.whole('r'))[0]).toMatchObject({ type: 'error', error: { param: 'request' } })
  })
})
