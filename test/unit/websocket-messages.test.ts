import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { encodeError, EventEncoder, PONG } from '../../gateway/protocols/websocket/encode.js'
import {
  clientMessageSchema,
  isRequestId,
  messageJsonSchema,
  serverMessageSchema,
} from '../../gateway/protocols/websocket/messages.js'
import { isHostLocal, isOriginAllowed } from '../../gateway/protocols/origin-policy.js'
import type { GenerateEvent } from '../../gateway/request.js'

describe('published schema', () => {
  it('is up to date (npm run generate)', () => {
    const published: unknown = JSON.parse(readFileSync('docs/websocket.schema.json', 'utf8'))
    expect(published).toEqual(JSON.parse(JSON.stringify(messageJsonSchema())))
  })

  it.each([
    { type: 'chat', id: 'a', model: 'm', messages: [{ role: 'user', content: 'hi' }], temperature: 0 },
    { type: 'completion', id: 'a', model: 'm', prompt: [1, 2], echo: true },
    { type: 'chat', id: 'a', model: 'm', messages: [{ role: 'user', content: 'hi' }], guided_choice: ['a', 'b'] },
    { type: 'completion', id: 'a', model: 'm', prompt: 'a', response_format: { type: 'json_object' } },
    { type: 'cancel', id: 'a' },
    { type: 'ping' },
  ])('takes $type', (message) => {
    expect(clientMessageSchema.safeParse(message).success).toBe(true)
  })
})

describe('server messages', () => {
  const top = [{ id: 1, token: 'a', logprob: -2 }]
  const events: [GenerateEvent, object][] = [
    [
      { type: 'started', variant: 'm:int4', reason: 'only rung' },
      { request_id: 'req-1', variant: 'm:int4' },
    ],
    [
      { type: 'text', index: 1, text: 'a"\n\ud800\u2028é', tokens: [1, 2] },
      { index: 1, text: 'a"\n\ud800\u2028é', tokens: [1, 2] },
    ],
    [
      { type: 'text', index: 0, text: '', tokens: [], logprobs: [{ id: 1, token: 'a', logprob: null, top }] },
      { logprobs: [{ id: 1, token: 'a', logprob: null, top }] },
    ],
    [
      { type: 'degraded', index: 0, variant: 'm:int4', reason: 'r', cause: 'rung_failed', replayedTokens: 3 },
      { variant: 'm:int4', reason: 'r', cause: 'rung_failed', replayed_tokens: 3 },
    ],
    [
      { type: 'finished', index: 0, reason: 'length' },
      { index: 0, reason: 'length' },
    ],
    [
      { type: 'usage', usage: { promptTokens: 1, completionTokens: 2, cachedTokens: 1 } },
      { usage: { total_tokens: 3, prompt_tokens_details: { cached_tokens: 1 } } },
    ],
    [
      { type: 'error', error: new GatewayError('queue_full', 'busy', { retryAfterMs: 1.5 }) },
      { error: { code: 'queue_full' }, retry_after_ms: 2 },
    ],
  ]

  it.each(events)('%j is as published', (event, expected) => {
    const id = 'an "odd" id'
    const message = serverMessageSchema.parse(JSON.parse(new EventEncoder(id, 'req-1').encode(event)))
    expect(message).toMatchObject({ id, ...expected })
  })

  it('need no id when none is known', () => {
    expect(
      serverMessageSchema.parse(JSON.parse(encodeError(new GatewayError('invalid_request', 'x')))),
    ).not.toHaveProperty('id')
    expect(serverMessageSchema.parse(JSON.parse(PONG))).toEqual({ type: 'pong' })
  })
})

it.each([
  ['a', true],
  ['x'.repeat(64), true],
  ['x'.repeat(65), false],
  ['', false],
  [1, false],
  [undefined, false],
])('request id %j: %s', (id, usable) => {
  expect(isRequestId(id)).toBe(usable)
})

describe('who may connect', () => {
  const lan = '192.168.1.5'
  it.each<[string | undefined, string | undefined, string | undefined, string[], boolean]>([
    [undefined, 'box:8080', lan, [], true],
    ['http://localhost:3000', 'box:8080', lan, [], true],
    ['http://app.localhost', 'box:8080', '127.0.0.1', [], true],
    ['http://127.0.0.1:8080', '127.0.0.1:8080', '127.0.0.1', [], true],
    ['http://[::1]:8080', '[::1]:8080', '::1', [], true],
    ['http://box:8080', 'box:8080', lan, [], true],
    ['http://box:8080', 'BOX:8080', lan, [], true],
    ['http://box:9090', 'box:8080', lan, [], false],
    ['http://evil.example', 'box:8080', lan, [], false],
    ['http://evil.example:8080', 'evil.example:8080', '127.0.0.1', [], false],
    ['http://evil.example:8080', 'evil.example:8080', '::ffff:127.0.0.1', [], false],
    ['http://evil.example:8080', 'evil.example:8080', undefined, [], false],
    ['http://127.0.0.1.evil.example', 'box:8080', lan, [], false],
    ['https://chat.example', 'box:8080', lan, ['https://chat.example'], true],
    ['https://any.example', 'box:8080', lan, ['*'], true],
    ['null', 'box:8080', lan, [], false],
    ['', 'box:8080', lan, [], false],
  ])('origin %s at host %s on %s with %j: %s', (origin, host, localAddress, allowed, expected) => {
    expect(isOriginAllowed({ origin, host, localAddress }, allowed)).toBe(expected)
  })
})

describe('hosts that no page can have rebound', () => {
  it.each([
    ['localhost:8080', true],
    ['LOCALHOST', true],
    ['box.localhost:1', true],
    ['127.0.0.1:8080', true],
    ['127.8.8.8', true],
    ['[::1]:8080', true],
    ['10.1.2.3:8080', true],
    ['[fe80::1]:8080', true],
    ['host.docker.internal:8080', true],
    ['host.containers.internal', true],
    ['evil.example:8080', false],
    ['localhost.evil.example', false],
    ['127.0.0.1.evil.example', false],
    ['notlocalhost', false],
    ['evil.example#localhost', false],
    ['localhost@evil.example', false],
    ['', false],
    [undefined, false],
  ])('%s: %s', (host, expected) => {
    expect(isHostLocal(host)).toBe(expected)
  })
})
