import { describe, expect, it } from 'vitest'
import { Collected, encodeChatAnswer, encodeCompletionAnswer } from '../../gateway/protocols/openai/answer.js'
import { chatChunks, completionChunks } from '../../gateway/protocols/openai/chunks.js'
import { chatLogprobs, completionLogprobs, textOffsets } from '../../gateway/protocols/openai/logprobs.js'

const served = { id: 'chatcmpl-1', created: 5, variant: 'm:int4' }
const usage = { promptTokens: 3, completionTokens: 2, cachedTokens: 1 }
const parse = (event: string): unknown => JSON.parse(event.slice('data: '.length))
const entry = (token: string, logprob: number | null = -1) => ({ id: 1, token, logprob, top: [] })

describe('chunks', () => {
  const common = { created: 5, id: 'chatcmpl-1', model: 'm:int4', system_fingerprint: 'fp-m:int4' }

  it('of a chat', () => {
    const encoder = chatChunks(served, { includeUsage: false, includeTokenIds: false })
    const object = 'chat.completion.chunk'
    const choice = { index: 1, logprobs: null, finish_reason: null }
    expect(parse(encoder.opening(1))).toEqual({
      ...common,
      object,
      choices: [{ ...choice, delta: { role: 'assistant', content: '' } }],
    })
    const text = 'a "quoted"\n\u2028 line'
    const event = encoder.text({ type: 'text', index: 1, text, tokens: [1] })
    expect(event).toMatch(/^data: [^\n]*\n\n$/)
    expect(parse(event)).toEqual({ ...common, object, choices: [{ ...choice, delta: { content: text } }] })
    expect(parse(encoder.finished(1, 'length'))).toEqual({
      ...common,
      object,
      choices: [{ ...choice, delta: {}, finish_reason: 'length' }],
    })
  })

  it('of a completion count text offsets per choice', () => {
    const encoder = completionChunks(served, { includeUsage: false, includeTokenIds: false })
    const offsets = ['é', '😀', 'x'].map((token) => {
      const event = encoder.text({ type: 'text', index: 2, text: token, tokens: [1], logprobs: [entry(token)] })
      return parse(event)
    })
    expect(offsets).toMatchObject([0, 1, 2].map((start) => ({ choices: [{ logprobs: { text_offset: [start] } }] })))
  })

  it.each([chatChunks, completionChunks])(
    'say that the answer goes on elsewhere, and name the new rung after it',
    (chunks) => {
      const encoder = chunks(served, { includeUsage: true, includeTokenIds: false })
      const degraded = { variant: 'm:int8', reason: 'a "$&" reason', cause: 'rung_failed' as const }
      const event = parse(encoder.degraded({ type: 'degraded', index: 1, ...degraded, replayedTokens: 2 }))
      expect(event).toMatchObject({
        model: 'm:int8',
        system_fingerprint: 'fp-m:int8',
        choices: [{ index: 1, finish_reason: null }],
        edgeshift: { degraded: { ...degraded, replayed_tokens: 2 } },
        usage: null,
      })
      const next = parse(encoder.text({ type: 'text', index: 0, text: 'x', tokens: [1] }))
      expect(next).toMatchObject({ model: 'm:int8' })
      expect(next).not.toHaveProperty('edgeshift')
    },
  )

  it('say nothing for text that is held back', () => {
    const event = { type: 'text', index: 0, text: '', tokens: [1] } as const
    const silent = chatChunks(served, { includeUsage: false, includeTokenIds: false })
    expect(silent.text({ ...event, tokens: [1] })).toBe('')
    const withIds = chatChunks(served, { includeUsage: false, includeTokenIds: true })
    expect(parse(withIds.text({ ...event, tokens: [1] }))).toMatchObject({ choices: [{ token_ids: [1] }] })
  })

  it('carry a usage, null until the last, when it was asked for', () => {
    const encoder = chatChunks(served, { includeUsage: true, includeTokenIds: false })
    expect(parse(encoder.opening(0))).toMatchObject({ usage: null })
    expect(parse(encoder.usage(usage))).toEqual({
      ...common,
      object: 'chat.completion.chunk',
      choices: [],
      usage: {
        prompt_tokens: 3,
        completion_tokens: 2,
        total_tokens: 5,
        prompt_tokens_details: { cached_tokens: 1 },
      },
    })
  })
})

describe('log probabilities', () => {
  it('have no bytes for a part of a character', () => {
    expect(chatLogprobs([entry('é'), entry('\uFFFD')])).toMatchObject({
      content: [{ bytes: [0xc3, 0xa9] }, { bytes: null }],
    })
  })

  it('survive a token named like a prototype', () => {
    const top = [{ id: 2, token: '__proto__', logprob: -2 }]
    const json = completionLogprobs([{ ...entry('ab'), top }], [10])
    expect(JSON.stringify(json)).toBe(
      '{"tokens":["ab"],"token_logprobs":[-1],"top_logprobs":[{"__proto__":-2,"ab":-1}],"text_offset":[10]}',
    )
  })

  it.each([
    ['tokens of the text', ['ab', ' c'], 'ab c', [10, 12]],
    ['characters past UTF-16 units', ['🦊', 'a'], '🦊a', [10, 11]],
    ['parts of a character', ['a', '\uFFFD', '\uFFFD', 'b', 'c'], 'a🦊bc', [10, 11, 11, 12, 13]],
    ['a token that is not shown', ['a', '<|im_end|>'], 'a', [10, 11]],
    ['a token that a stop string cut', ['ab', 'cd'], 'abc', [10, 12]],
    ['a space that the text does not begin with', [' a', ' b', ' c'], 'a b c', [10, 11, 13]],
  ])('say where %s begin', (_, tokens, text, expected) => {
    expect(textOffsets(tokens.map(entry), text, 10)).toEqual(expected)
  })

  it('count on from the text before, whatever its tokens were', () => {
    const answer = new Collected(1)
    answer.add({ type: 'text', index: 0, text: '🦊', tokens: [1, 2], logprobs: [entry('\uFFFD'), entry('\uFFFD')] })
    answer.add({ type: 'text', index: 0, text: 'b', tokens: [3], logprobs: [entry('b')] })
    const encoder = completionChunks(served, { includeUsage: false, includeTokenIds: false })
    const chunks = [
      encoder.text({
        type: 'text',
        index: 0,
        text: '🦊',
        tokens: [1, 2],
        logprobs: [entry('\uFFFD'), entry('\uFFFD')],
      }),
      encoder.text({ type: 'text', index: 0, text: 'b', tokens: [3], logprobs: [entry('b')] }),
    ]
    const whole = JSON.parse(encodeCompletionAnswer(served, answer, usage, false))
    expect(whole.choices[0].logprobs.text_offset).toEqual([0, 0, 1])
    expect(chunks.map((chunk) => parse(chunk))).toMatchObject([
      { choices: [{ logprobs: { text_offset: [0, 0] } }] },
      { choices: [{ logprobs: { text_offset: [1] } }] },
    ])
  })
})

describe('a whole answer', () => {
  it('collects every choice', () => {
    const answer = new Collected(2)
    answer.add({ type: 'text', index: 1, text: 'a', tokens: [1] })
    answer.add({ type: 'text', index: 1, text: 'b', tokens: [2] })
    answer.add({ type: 'finished', index: 1, reason: 'length' })
    expect(JSON.parse(encodeChatAnswer(served, answer, usage, false))).toMatchObject({
      choices: [
        { index: 0, message: { content: '' }, finish_reason: null },
        { index: 1, message: { role: 'assistant', content: 'ab' }, finish_reason: 'length', logprobs: null },
      ],
    })
  })

  it('collects an echoed prompt of any length', () => {
    const answer = new Collected(1)
    const tokens = Array.from({ length: 300_000 }, (_, i) => i)
    const logprobs = tokens.map(() => entry('x'))
    answer.add({ type: 'text', index: 0, text: 'x', tokens, logprobs })
    expect(answer.choices[0]).toMatchObject({ tokens: { length: 300_000 }, logprobs: { length: 300_000 } })
  })

  it('refuses more log probabilities than can be sent whole, counting all choices and alternatives', () => {
    const answer = new Collected(2)
    const logprobs = Array.from({ length: 25_000 }, () => ({
      ...entry('x'),
      top: Array.from({ length: 19 }, () => ({ id: 2, token: 'y', logprob: -2 })),
    }))
    const add = (index: number): void => answer.add({ type: 'text', index, text: 'x', tokens: [], logprobs })
    add(0)
    add(1)
    expect(() => answer.add({ type: 'text', index: 0, text: 'x', tokens: [1], logprobs: [entry('z')] })).toThrow(
      expect.objectContaining({
        code: 'invalid_request',
        message: expect.stringContaining('1000000 log probabilities'),
      }),
    )
  })
})
