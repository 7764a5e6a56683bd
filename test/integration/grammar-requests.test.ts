/** An answer that follows a grammar is asked for alike over every protocol; what the generator gets is compared. */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { ChatRequest } from '../../proto/gen/edgeshift/v1/gateway.js'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { answer, fakeServices } from '../support/fake-services.js'
import { serveThreeProtocols, type ThreeProtocols } from '../support/three-protocols.js'

const services = fakeServices(answer('a'))
let over: ThreeProtocols

beforeAll(async () => {
  over = await serveThreeProtocols(services)
})
afterAll(() => over.close())
beforeEach(() => (services.generator.runs.length = 0))

const messages = [{ role: 'user', content: 'hi' }]
const grammars = (): unknown[] => services.generator.runs.map(({ request }) => request.grammar)

async function post(path: string, body: object): Promise<{ status: number; json: unknown }> {
  const response = await fetch(over.url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'fake', ...body }),
  })
  return { status: response.status, json: await response.json() }
}

async function overSocket(type: 'chat' | 'completion', fields: object): Promise<unknown> {
  const id = `${type}-${services.generator.runs.length}`
  over.socket.send({ type, id, model: 'fake', ...fields })
  return (await over.socket.whole(id)).at(-1)
}

const overGrpc = (grammar: Grammar) =>
  over.peer.chat(ChatRequest.fromPartial({ model: 'fake', messages, options: { grammar } }))

/** A schema of so many levels, of the kind that a generated one has. */
function nested(levels: number): object {
  return levels === 1 ? {} : { not: nested(levels - 1) }
}

describe('a grammar', () => {
  const schema = { type: 'object', properties: { a: { type: 'integer' } } }
  it.each<[string, object, Grammar]>([
    [
      'response_format',
      { response_format: { type: 'json_schema', json_schema: { name: 'a', schema } } },
      { kind: { $case: 'jsonSchema', jsonSchema: JSON.stringify(schema) } },
    ],
    ['guided_choice', { guided_choice: ['a', 'b'] }, { kind: { $case: 'choice', choice: { texts: ['a', 'b'] } } }],
    ['structured_outputs', { structured_outputs: { regex: 'a+' } }, { kind: { $case: 'regex', regex: 'a+' } }],
    [
      'the deepest schema',
      { guided_json: nested(64) },
      { kind: { $case: 'jsonSchema', jsonSchema: JSON.stringify(nested(64)) } },
    ],
  ])('reaches the generator from every protocol: %s', async (_name, fields, grammar) => {
    expect(await post('/v1/chat/completions', { messages, ...fields })).toMatchObject({ status: 200 })
    expect(await post('/v1/completions', { prompt: ['x', 'y'], ...fields })).toMatchObject({ status: 200 })
    expect(await overSocket('chat', { messages, ...fields })).toMatchObject({ type: 'usage' })
    expect(await overSocket('completion', { prompt: 'x', ...fields })).toMatchObject({ type: 'usage' })
    await overGrpc(grammar)
    expect(grammars()).toEqual(Array.from({ length: 6 }, () => grammar))
  })

  it('of the deepest schema fits into the deepest field of a body', async () => {
    const response_format = { type: 'json_schema', json_schema: { name: 'a', schema: nested(64) } }
    expect(await post('/v1/chat/completions', { messages, response_format })).toMatchObject({ status: 200 })
    const guided = await post('/v1/chat/completions', { messages, guided_json: nested(65) })
    expect(guided.json).toMatchObject({ error: { code: 'invalid_request', param: 'guided_json' } })
  })

  it('is refused alike', async () => {
    const error = { code: 'invalid_request', param: 'structured_outputs.json' }
    const fields = { structured_outputs: { json: '{' } }
    expect(await post('/v1/chat/completions', { messages, ...fields })).toMatchObject({ status: 400, json: { error } })
    expect(await overSocket('chat', { messages, ...fields })).toMatchObject({ type: 'error', error })
    const refused: unknown = await overGrpc({ kind: { $case: 'jsonSchema', jsonSchema: '{' } }).catch((e: unknown) => e)
    const { metadata } = Object(refused)
    expect(metadata.get('edgeshift-error-param')).toEqual([error.param])
    expect(grammars()).toEqual([])
  })

  it('takes part in a dry run, which it does not change', async () => {
    for (const body of [{ messages }, { prompt: 'x' }]) {
      const plain = await post('/v1/route', body)
      expect(plain.status).toBe(200)
      expect(await post('/v1/route', { ...body, response_format: { type: 'json_object' } })).toEqual(plain)
    }
    const bad = await post('/v1/route', { messages, guided_choice: [] })
    expect(bad.json).toMatchObject({ error: { param: 'guided_choice' } })
    expect(services.generator.runs).toEqual([])
  })
})
