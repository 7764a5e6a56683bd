/** Answers of the embedded model that follow a grammar, over every protocol. */
import { Ajv2020 } from 'ajv/dist/2020.js'
import { WebSocket } from 'ws'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { GenerateOptions } from '../../proto/gen/edgeshift/v1/gateway.js'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'
import { GrpcPeer } from '../support/grpc-clients.js'
import { chatText, openAiClient } from '../support/openai-scenarios.js'
import { shippedKind } from '../support/test-device.js'
import { ChatPeer, textOf } from '../support/websocket-clients.js'

const PERSON = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 20 },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    tags: { type: 'array', items: { enum: ['tea', 'chess', 'code'] }, maxItems: 2 },
  },
  required: ['name', 'age', 'tags'],
}
const follows = new Ajv2020().compile(PERSON)
const ABOUT = 'Describe Anna, 34, who likes tea and chess, as JSON.'
const schemaFormat = {
  type: 'json_schema',
  json_schema: { name: 'person', schema: PERSON },
} as const

let box: GatewayProcess

beforeAll(async () => {
  box = await GatewayProcess.startShipped(onlyRung('int4')).ready()
})
afterAll(() => box.close())

function chat(content: string, more: object): Promise<string> {
  const messages = [{ role: 'user' as const, content }]
  const body = { model: 'chat', messages, temperature: 0, max_tokens: 100, ...more }
  return openAiClient({ url: box.url, model: 'chat' })
    .chat.completions.create(body)
    .then(({ choices }) => choices[0]?.message.content ?? '')
}

async function overGrpc(content: string, kind: Grammar['kind']): Promise<string> {
  const peer = new GrpcPeer(box.grpcAddress)
  const options = GenerateOptions.create({ maxTokens: 100, temperature: 0, grammar: { kind } })
  const { response } = await peer.chat({ model: 'chat', messages: [{ role: 'user', content, name: '' }], options })
  peer.close()
  return response.choices[0]?.text ?? ''
}

async function overWebSocket(content: string, more: object): Promise<string> {
  const peer = new ChatPeer(new WebSocket(`${box.url.replace('http', 'ws')}/v1/chat/ws`))
  await peer.opened
  const messages = [{ role: 'user', content }]
  peer.send({ type: 'chat', id: 'a', model: 'chat', messages, temperature: 0, max_tokens: 100, ...more })
  const received = await peer.whole('a')
  peer.socket.close()
  return textOf(received)
}

describe('a JSON Schema', () => {
  it('is followed, and the same over every protocol', async () => {
    const text = await chat(ABOUT, { response_format: schemaFormat })
    expect(follows(JSON.parse(text))).toBe(true)
    expect(text).toMatch(/^\{"name": "Anna/)
    expect(await overWebSocket(ABOUT, { guided_json: PERSON })).toBe(text)
    expect(await overGrpc(ABOUT, { $case: 'jsonSchema', jsonSchema: JSON.stringify(PERSON) })).toBe(text)
    const stream = await openAiClient({ url: box.url, model: 'chat' }).chat.completions.create({
      model: 'chat',
      messages: [{ role: 'user', content: ABOUT }],
      temperature: 0,
      max_tokens: 100,
      stream: true,
      response_format: schemaFormat,
    })
    const chunks = []
    for await (const chunk of stream) chunks.push(chunk)
    expect(chatText(chunks)).toBe(text)
    expect(chunks.at(-1)?.choices[0]?.finish_reason).toBe('stop')
  })

  it('is followed by every choice, whatever the temperature', async () => {
    const { choices } = await openAiClient({ url: box.url, model: 'chat' }).chat.completions.create({
      model: 'chat',
      messages: [{ role: 'user', content: ABOUT }],
      temperature: 1.5,
      seed: 3,
      n: 6,
      max_tokens: 120,
      response_format: schemaFormat,
    })
    expect(choices).toHaveLength(6)
    for (const { message, finish_reason } of choices) {
      expect(finish_reason).toBe('stop')
      expect(follows(JSON.parse(message.content ?? ''))).toBe(true)
    }
  })
})

it('regular expressions, EBNF and choices are followed', async () => {
  expect(await chat('When was the moon landing?', { guided_regex: '(19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}' })).toMatch(
    /^(?:19|20)\d\d-\d\d-\d\d$/,
  )
  const ebnf = 'root ::= "(" root* ")"'
  const nested = await chat('Write brackets.', { guided_grammar: ebnf, max_tokens: 60, temperature: 1, seed: 1 })
  let depth = 0
  for (const bracket of nested) {
    depth += bracket === '(' ? 1 : -1
    expect(depth).toBeGreaterThanOrEqual(0)
  }
  expect(nested).toMatch(/^[()]+$/)
  expect(['certainly', 'never']).toContain(await chat('Is the sky blue?', { guided_choice: ['certainly', 'never'] }))
  await box.until(() => box.log.some(({ grammar }) => grammar === 'choice'), 'the log says so')
})

// On a GPU texts may part at near ties: near-ties.test.ts counts those.
it.skipIf(shippedKind() === 'cuda')('answers without one beside it stay as they are', async () => {
  const questions = ['List five rivers.', 'What is 17 times 23?', 'Tell me a story about a fox.']
  const alone = await Promise.all(questions.map((question) => chat(question, { max_tokens: 30 })))
  const all = await Promise.all([
    ...questions.map((question) => chat(question, { max_tokens: 30 })),
    ...['a', 'b', 'c', 'd'].map((letter) => chat(ABOUT, { guided_regex: `${letter}[a-z ]{60}` })),
    ...questions.map((question) => chat(question, { max_tokens: 30 })),
  ])
  expect([all.slice(0, 3), all.slice(7)]).toEqual([alone, alone])
  for (const [i, letter] of ['a', 'b', 'c', 'd'].entries())
    expect(all[3 + i]).toMatch(new RegExp(`^${letter}[a-z ]{60}$`))
})

it.each([
  [{ guided_regex: '(?=a)b' }, 'the pattern "(?=a)b": (?=a) is not kept'],
  [{ guided_grammar: 'root ::= "a" root' }, 'no text follows the grammar: nothing ends it'],
  [
    { guided_json: { type: 'object', properties: { a: { type: 'array', uniqueItems: true } } } },
    "the schema's properties.a.uniqueItems: is not kept",
  ],
])('what cannot be kept is refused before anything is answered: %j', async (grammar, message) => {
  await expect(chat('Hello', grammar)).rejects.toMatchObject({
    status: 400,
    code: 'invalid_request',
    error: { message },
  })
})
