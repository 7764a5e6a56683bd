import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decodeChat, decodeCompletion } from '../../gateway/protocols/decode.js'
import { fakeServices } from '../support/fake-services.js'
import { errorOf, refusal } from '../support/gateway-errors.js'

const services = fakeServices()
const origin = { id: 'req-1', tenant: 'tenant' }
const messages = [{ role: 'user', content: 'hi' }]

const chat = (fields: object) => decodeChat({ model: 'fake', messages, ...fields }, origin, services)
const completion = (fields: object) => decodeCompletion({ model: 'fake', prompt: 'a', ...fields }, origin, services)

describe('a minimal body', () => {
  it('takes the defaults of the OpenAI API', () => {
    const call = chat({})
    expect(call).toMatchObject({ stream: false, includeUsage: false })
    expect(call.requests).toEqual([
      {
        id: 'req-1',
        model: 'fake',
        input: { kind: 'chat', messages },
        sampling: {
          temperature: 1,
          topK: 0,
          topP: 1,
          minP: 0,
          repetitionPenalty: 1,
          presencePenalty: 0,
          frequencyPenalty: 0,
          logitBias: new Map(),
          minTokens: 0,
          ignoreEos: false,
          stopTokenIds: [],
        },
        stop: [],
        echo: false,
        n: 1,
        whole: true,
        deadlineMs: 0,
        tenant: 'tenant',
      },
    ])
  })

  it('continues a prompt by 16 tokens', () => {
    expect(completion({}).requests[0]).toMatchObject({ maxTokens: 16, input: { kind: 'text', text: 'a' } })
  })
})

describe('accepted fields', () => {
  it.each<[string, object, object]>([
    ['max_tokens', { max_tokens: 7 }, { maxTokens: 7 }],
    ['max_completion_tokens', { max_completion_tokens: 7 }, { maxTokens: 7 }],
    ['null as absent', { max_tokens: null, stop: null, seed: null, n: null, tools: null }, { stop: [], n: 1 }],
    ['one stop string', { stop: 'x' }, { stop: ['x'] }],
    ['stop strings', { stop: ['x', 'y'] }, { stop: ['x', 'y'] }],
    ['log probabilities', { logprobs: true }, { topLogprobs: 0 }],
    ['alternatives', { logprobs: true, top_logprobs: 3 }, { topLogprobs: 3 }],
    ['priority', { priority: -3 }, { priority: -3 }],
    ['streams', { stream: true }, { whole: false }],
    ['opaque marks', { user: 'u', metadata: { a: 'b' }, store: false, service_tier: 'auto' }, {}],
    ['values that ask for nothing', { tools: [], tool_choice: 'none', response_format: { type: 'text' } }, {}],
  ])('%s', (_name, fields, expected) => {
    expect(chat(fields).requests[0]).toMatchObject(expected)
  })

  it('reads every sampling field', () => {
    const fields = {
      temperature: 0.5,
      top_k: 40,
      top_p: 0.9,
      min_p: 0.05,
      repetition_penalty: 1.1,
      presence_penalty: 0.2,
      frequency_penalty: -0.3,
      seed: -5,
      logit_bias: { '7': -100 },
      min_tokens: 2,
      ignore_eos: true,
      stop_token_ids: [9],
    }
    expect(chat(fields).requests[0].sampling).toEqual({
      temperature: 0.5,
      topK: 40,
      topP: 0.9,
      minP: 0.05,
      repetitionPenalty: 1.1,
      presencePenalty: 0.2,
      frequencyPenalty: -0.3,
      seed: -5,
      logitBias: new Map([[7, -100]]),
      minTokens: 2,
      ignoreEos: true,
      stopTokenIds: [9],
    })
  })

  it('joins text parts and reads developer as system', () => {
    const parts = ['a', 'b'].map((text) => ({ type: 'text', text }))
    const call = chat({
      messages: [
        { role: 'developer', content: parts },
        { role: 'user', content: 'x', name: 'n' },
      ],
    })
    expect(call.requests[0].input).toEqual({
      kind: 'chat',
      messages: [
        { role: 'system', content: 'a\nb' },
        { role: 'user', content: 'x', name: 'n' },
      ],
    })
  })

  it('takes an answer back as a client got it', () => {
    const answer = { role: 'assistant', content: 'x', refusal: null, annotations: [], tool_calls: null, audio: null }
    expect(chat({ messages: [...messages, answer] }).requests[0].input).toMatchObject({
      messages: [{ role: 'user' }, { role: 'assistant', content: 'x' }],
    })
  })

  it.each<[string, unknown, object[]]>([
    ['text', 'a', [{ kind: 'text', text: 'a' }]],
    ['ids', [1, 2], [{ kind: 'tokens', tokens: [1, 2] }]],
    [
      'texts',
      ['a', 'b'],
      [
        { kind: 'text', text: 'a' },
        { kind: 'text', text: 'b' },
      ],
    ],
    [
      'lists of ids',
      [[1], [2, 3]],
      [
        { kind: 'tokens', tokens: [1] },
        { kind: 'tokens', tokens: [2, 3] },
      ],
    ],
  ])('a prompt as %s', (_name, prompt, inputs) => {
    const { requests } = completion({ prompt })
    expect(requests.map(({ input }) => input)).toEqual(inputs)
    expect(new Set(requests.map(({ id }) => id)).size).toBe(requests.length)
  })
})

describe('refused fields', () => {
  it.each<[string, object]>([
    ['temperature', { temperature: 2.1 }],
    ['temperature', { temperature: 'hot' }],
    ['temperature', { temperature: Number.POSITIVE_INFINITY }],
    ['top_p', { top_p: -0.1 }],
    ['top_k', { top_k: 1.5 }],
    ['min_p', { min_p: 2 }],
    ['repetition_penalty', { repetition_penalty: 0 }],
    ['presence_penalty', { presence_penalty: 3 }],
    ['max_tokens', { max_tokens: 0 }],
    ['max_tokens', { max_tokens: 1, max_completion_tokens: 2 }],
    ['min_tokens', { min_tokens: 3, max_tokens: 2 }],
    ['n', { n: 0 }],
    ['n', { n: 5 }],
    ['seed', { seed: 1e300 }],
    ['stop', { stop: ['a', 'b', 'c', 'd', 'e'] }],
    ['stop[1]', { stop: ['a', ''] }],
    ['stop', { stop: 'x'.repeat(65) }],
    ['stop', { stop: 3 }],
    ['stop_token_ids[1]', { stop_token_ids: [1, 70_000] }],
    ['stop_token_ids', { stop_token_ids: 'x' }],
    ['logit_bias', { logit_bias: { a: 1 } }],
    ['logit_bias.1', { logit_bias: { '1': 101 } }],
    ['logit_bias', { logit_bias: [] }],
    ['top_logprobs', { top_logprobs: 2 }],
    ['top_logprobs', { logprobs: true, top_logprobs: 21 }],
    ['stream_options', { stream_options: {} }],
    ['model', { model: null }],
    ['model', { model: 3 }],
    ['messages', { messages: null }],
    ['messages', { messages: [] }],
    ['messages', { messages: 'hi' }],
    ['messages', { messages: Array.from({ length: 3000 }, () => 1) }],
    ['messages[0]', { messages: [1] }],
    ['messages[0].role', { messages: [{ role: 'robot', content: 'x' }] }],
    ['messages[1].content', { messages: [...messages, { role: 'user' }] }],
    ['messages[0].content', { messages: [{ role: 'user', content: 3 }] }],
    ['messages[0].content', { messages: [{ role: 'user', content: '\uD800' }] }],
    ['messages[0].content[0].text', { messages: [{ role: 'user', content: [{ type: 'text', text: 1 }] }] }],
    ['metadata', { metadata: { a: 1 } }],
    ['priority', { priority: 2 ** 31 }],
  ])('%s: %j is invalid', (param, fields) => {
    const error = errorOf(() => chat(fields))
    expect(error).toMatchObject({ code: 'invalid_request', param })
    expect(error.message).toContain(param)
  })

  it.each<[string, object]>([
    ['tools', { tools: [{ type: 'function' }] }],
    ['reasoning_effort', { reasoning_effort: 'high' }],
    ['audio', { audio: {} }],
    ['store', { store: true }],
    ['best_of', { best_of: 3 }],
    ['echo', { echo: true }],
    ['surprise', { surprise: 1 }],
    ['stream_options.surprise', { stream: true, stream_options: { surprise: 1 } }],
    ['messages[0].tool_calls', { messages: [{ role: 'assistant', content: 'x', tool_calls: [{}] }] }],
    ['messages[0].surprise', { messages: [{ role: 'user', content: 'x', surprise: 1 }] }],
    [
      'messages[0].content[1].type',
      { messages: [{ role: 'user', content: [{ type: 'text' }, { type: 'image_url' }] }] },
    ],
  ])('%s is not supported', (param, fields) => {
    expect(errorOf(() => chat(fields))).toMatchObject({ code: 'unsupported_parameter', param })
  })

  it('suggests the nearest known name', () => {
    expect(errorOf(() => chat({ temprature: 1 })).message).toBe('unknown field temprature; did you mean temperature?')
  })

  it.each<[string, object]>([
    ['prompt', { prompt: null }],
    ['prompt', { prompt: '' }],
    ['prompt', { prompt: [] }],
    ['prompt', { prompt: { a: 1 } }],
    ['prompt[0]', { prompt: [[]] }],
    ['prompt[1]', { prompt: ['a', ''] }],
    ['prompt[1]', { prompt: ['a', [1]] }],
    ['prompt[1]', { prompt: [1, 'a'] }],
    ['prompt[0]', { prompt: [-1] }],
    ['prompt[0]', { prompt: [1.5] }],
    ['prompt[1][0]', { prompt: [[1], [65_536]] }],
    ['prompt', { prompt: Array.from({ length: 9 }, () => 'a') }],
    ['n', { prompt: ['a', 'b', 'c'], n: 3 }],
    ['max_tokens', { max_tokens: 0 }],
    ['logprobs', { logprobs: true }],
    ['logprobs', { logprobs: 21 }],
  ])('completion %s: %j is invalid', (param, fields) => {
    expect(errorOf(() => completion(fields))).toMatchObject({ code: 'invalid_request', param })
  })

  it('refuses more prompt tokens than any model takes', () => {
    const prompt = Array.from({ length: 4097 }, () => 1)
    expect(errorOf(() => completion({ prompt }))).toMatchObject({ code: 'context_length_exceeded', param: 'prompt' })
  })

  it('treats __proto__ as an unknown field', () => {
    const body: unknown = JSON.parse('{"model":"fake","messages":[],"__proto__":{"stream":true}}')
    expect(errorOf(() => decodeChat(body, origin, services))).toMatchObject({ param: '__proto__' })
  })
})

describe('any JSON value', () => {
  it('is decoded or refused by a GatewayError', () => {
    const value = fc.jsonValue({ maxDepth: 3 })
    const body = fc.record(
      { model: fc.constant('fake'), messages: value, prompt: value, stop: value, n: value },
      { requiredKeys: [] },
    )
    const decoded = fc.property(fc.oneof(value, body), (candidate) => {
      for (const decode of [decodeChat, decodeCompletion]) refusal(() => decode(candidate, origin, services))
    })
    expect(fc.check(decoded, { numRuns: 300 }).counterexample).toBeNull()
  })
})
