import { status } from '@grpc/grpc-js'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import type { HealthReport } from '../../gateway/services.js'
import { asWritten, chatBody, completionBody } from '../../gateway/protocols/grpc/decode.js'
import { encodeEvent, ResponseBuilder } from '../../gateway/protocols/grpc/encode.js'
import { servingStatus } from '../../gateway/protocols/grpc/health.js'
import { errorStatus, servedMetadata } from '../../gateway/protocols/grpc/status.js'
import { GenerateOptions } from '../../proto/gen/edgeshift/v1/gateway.js'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'

describe('requests become HTTP bodies', () => {
  it('leaves absent fields absent', () => {
    const messages = [{ role: 'user', content: 'hi', name: '' }]
    expect(chatBody({ model: '', messages, options: GenerateOptions.create() })).toEqual({
      messages: [{ role: 'user', content: 'hi' }],
    })
    expect(completionBody({ model: 'm', prompt: undefined, options: undefined, echo: false })).toEqual({ model: 'm' })
  })

  it('keeps present zeros and falses', () => {
    const options = GenerateOptions.create({ maxTokens: 0, temperature: 0, topK: 0, ignoreEos: false, topLogprobs: 0 })
    const zeros = { max_tokens: 0, temperature: 0, top_k: 0, ignore_eos: false }
    expect(chatBody({ model: 'm', messages: [], options })).toEqual({
      model: 'm',
      messages: [],
      logprobs: true,
      top_logprobs: 0,
      ...zeros,
    })
    expect(completionBody({ model: 'm', prompt: { $case: 'text', text: '' }, options, echo: true })).toEqual({
      model: 'm',
      prompt: '',
      echo: true,
      logprobs: 0,
      ...zeros,
    })
  })

  it.each<[Grammar, object]>([
    [{ kind: { $case: 'jsonSchema', jsonSchema: '{}' } }, { json: '{}' }],
    [{ kind: { $case: 'regex', regex: 'a+' } }, { regex: 'a+' }],
    [{ kind: { $case: 'ebnf', ebnf: 'root ::= "a"' } }, { grammar: 'root ::= "a"' }],
    [{ kind: { $case: 'choice', choice: { texts: ['a', 'b'] } } }, { choice: ['a', 'b'] }],
    [{ kind: undefined }, {}],
  ])('asks for the grammar %j as structured_outputs', (grammar, expected) => {
    const options = GenerateOptions.create({ grammar })
    expect(chatBody({ model: 'm', messages: [], options })).toMatchObject({ structured_outputs: expected })
    expect(completionBody({ model: 'm', prompt: undefined, options, echo: false })).toEqual({
      model: 'm',
      structured_outputs: expected,
    })
  })

  it('reads 32-bit floats as they were written', () => {
    const decimal = fc.integer({ min: -200_000, max: 200_000 }).map((n) => n / 10_000)
    fc.assert(fc.property(decimal, (value) => asWritten(Math.fround(value)) === value))
    fc.assert(fc.property(fc.float({ noNaN: true }), (value) => Math.fround(asWritten(value) ?? 1) === value))
    expect([asWritten(undefined), asWritten(Number.NaN)]).toEqual([undefined, Number.NaN])
  })
})

describe('answers', () => {
  it('encodes an undefined log probability as NaN', () => {
    const logprobs = [{ id: 1, token: 'a', logprob: null, top: [{ id: 2, token: 'b', logprob: -1 }] }]
    expect(encodeEvent('id', { type: 'text', index: 0, text: 'a', tokens: [1], logprobs }).kind).toMatchObject({
      delta: { logprobs: [{ id: 1, logprob: Number.NaN, top: [{ id: 2, logprob: -1, top: [] }] }] },
    })
  })

  it('gathers interleaved choices', () => {
    const builder = new ResponseBuilder('id', 2)
    builder.add({ type: 'started', variant: 'm:int4', reason: 'r' })
    builder.add({ type: 'text', index: 1, text: 'b', tokens: [2] })
    builder.add({ type: 'text', index: 0, text: 'a', tokens: [1] })
    builder.add({ type: 'text', index: 1, text: 'c', tokens: [3] })
    builder.add({ type: 'finished', index: 1, reason: 'length' })
    builder.add({
      type: 'degraded',
      index: 0,
      variant: 'm:int8',
      reason: 'r',
      cause: 'engine_failed',
      replayedTokens: 3,
    })
    builder.add({ type: 'finished', index: 0, reason: 'stop' })
    builder.add({ type: 'usage', usage: { promptTokens: 1, completionTokens: 3, cachedTokens: 0 } })
    expect(builder.build()).toMatchObject({
      id: 'id',
      variant: 'm:int8',
      degraded: 'engine_failed',
      choices: [
        { index: 0, text: 'a', finishReason: 'stop', tokens: [1] },
        { index: 1, text: 'bc', finishReason: 'length', tokens: [2, 3] },
      ],
      usage: { promptTokens: 1, completionTokens: 3, cachedTokens: 0 },
    })
  })

  it('hold an echoed prompt of any length, up to the bound on log probabilities', () => {
    const builder = new ResponseBuilder('id', 1)
    const logprobs = Array.from({ length: 300_000 }, (_, id) => ({ id, token: 'x', logprob: -1, top: [] }))
    const add = (): void => builder.add({ type: 'text', index: 0, text: 'x', tokens: [], logprobs })
    add()
    expect(builder.build()).toMatchObject({ choices: [{ logprobs: { length: 300_000 } }] })
    add()
    add()
    expect(add).toThrow(expect.objectContaining({ code: 'invalid_request' }))
  })
})

describe('statuses', () => {
  it('carries code, field, retry time and what served', () => {
    const error = new GatewayError('queue_full', 'busy', { param: 'stop[0]', retryAfterMs: 10.5 })
    const { code, details, metadata } = errorStatus(error, servedMetadata('m:int4', 'r'))
    expect([code, details]).toEqual([status.RESOURCE_EXHAUSTED, 'busy'])
    expect(metadata.getMap()).toEqual({
      'edgeshift-error-code': 'queue_full',
      'edgeshift-error-param': 'stop[0]',
      'retry-after-ms': '11',
      'x-edgeshift-variant': 'm:int4',
      'x-edgeshift-reason': 'r',
    })
  })

  it('hides what is not of the catalogue and survives unprintable text', () => {
    expect(errorStatus(new Error('secret'))).toMatchObject({ code: status.INTERNAL, details: 'internal error' })
    const odd = errorStatus(new GatewayError('invalid_request', '\ud800', { param: 'é\n' }))
    expect(odd.details).toBe('\ufffd')
    expect(odd.metadata.get('edgeshift-error-param')).toEqual(['??'])
  })
})

describe('health', () => {
  const models: HealthReport['models'] = {
    a: { fp16: 'failed', int4: 'ready' },
    b: { int8: 'loading' },
    'c:d': { int4: 'ready' },
  }
  it.each([
    ['ok', '', 'SERVING'],
    ['degraded', 'edgeshift.v1.Gateway', 'SERVING'],
    ['loading', '', 'NOT_SERVING'],
    ['draining', '', 'NOT_SERVING'],
    ['draining', 'a', 'NOT_SERVING'],
    ['loading', 'a', 'SERVING'],
    ['ok', 'b', 'NOT_SERVING'],
    ['ok', 'a:fp16', 'NOT_SERVING'],
    ['ok', 'a:int4', 'SERVING'],
    ['ok', 'c:d', 'SERVING'],
    ['ok', 'c:d:int4', 'SERVING'],
    ['ok', 'a:', 'SERVICE_UNKNOWN'],
    ['ok', 'constructor', 'SERVICE_UNKNOWN'],
  ] as const)('%s box, "%s": %s', (box, name, expected) => {
    expect(servingStatus({ status: box, models }, name)).toBe(expected)
  })
})
