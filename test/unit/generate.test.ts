import { describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { choiceSeed } from '../../gateway/generate/submission.js'
import { Standing } from '../../gateway/generate/trial.js'
import type { GenerateEvent, GenerateRequest } from '../../gateway/request.js'
import { FinishReason, type TokenLogprob } from '../../proto/gen/edgeshift/v1/engine.js'
import { CONTEXT, requestOf, settle, Setup } from '../support/fake-pipeline.js'

const started = { type: 'started', variant: 'm:int4', reason: 'highest: the best rung' }
const text = (value: string, index = 0) => ({
  type: 'text',
  index,
  text: value,
  tokens: Array.from(value, (char) => char.charCodeAt(0)),
})
const usage = (completionTokens: number, promptTokens = 2, cachedTokens = 0) => ({
  type: 'usage',
  usage: { promptTokens, completionTokens, cachedTokens },
})
const echoed = (index: number) => [text('ab', index), { type: 'finished', index, reason: 'length' }]
const logprob = (char: string, value: number): TokenLogprob => ({
  token: char.charCodeAt(0),
  logprob: value,
  rank: 1,
  topTokens: [char.charCodeAt(0)],
  topLogprobs: [value],
})

describe('Pipeline', () => {
  it('tells started, text, finished and usage in order', async () => {
    const setup = new Setup()
    await setup.start()
    const [submission] = setup.session.submitted
    expect(submission).toMatchObject({ variant: 'm:int4', prompt: [97, 98], maxTokens: 4, replayedTokens: 0 })
    expect(submission?.sampling).toMatchObject({ seed: 7, stopTokenIds: [0], topLogprobs: undefined })
    expect(submission?.traceparent).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/)
    setup.session.delta(1, 'x', FinishReason.UNSPECIFIED, { start: { cachedTokens: 1, queueUs: 5 } })
    setup.session.delta(1, 'yz', FinishReason.LENGTH)
    const finished = { type: 'finished', index: 0, reason: 'length' }
    expect(setup.events).toEqual([started, text('x'), text('yz'), finished, usage(3, 2, 1)])
    expect(setup.pipeline.active).toBe(0)
  })

  it('gives the engine the grammar of every choice', async () => {
    const setup = new Setup()
    const grammar = { kind: { $case: 'regex' as const, regex: '[a-z]+' } }
    await setup.start({ grammar, n: 2 })
    await setup.start()
    expect(setup.session.submitted.map((submission) => submission.grammar)).toEqual([grammar, grammar, undefined])
  })

  it('tells the token that ended the choice without text', async () => {
    const setup = new Setup()
    await setup.start()
    setup.session.delta(1, 'x\0', FinishReason.STOP)
    const texts = setup.events.filter((event) => event.type === 'text')
    expect(texts).toEqual([text('x'), { type: 'text', index: 0, text: '', tokens: [0] }])
    expect(setup.events.at(-1)).toEqual(usage(2))
  })

  it('does not stop at the end of turn when asked to ignore it', async () => {
    const setup = new Setup()
    await setup.start({ sampling: { ...requestOf().sampling, ignoreEos: true, stopTokenIds: [5] } })
    expect(setup.session.submitted[0]?.sampling?.stopTokenIds).toEqual([5])
  })

  it('cancels the sequence at a stop string and drops the surplus', async () => {
    const setup = new Setup()
    await setup.start({ stop: ['!'] })
    setup.session.delta(1, 'x!yz')
    expect(setup.session.log).toEqual(['cancel 1'])
    const finished = { type: 'finished', index: 0, reason: 'stop' }
    expect(setup.events).toEqual([started, text('x'), finished, usage(2)])
  })

  it('runs n choices with seeds of their own and one usage', async () => {
    const setup = new Setup()
    await setup.start({ n: 2 })
    expect(setup.session.submitted.map(({ sampling }) => sampling?.seed)).toEqual([7, 8])
    setup.session.delta(2, 'b', FinishReason.LENGTH)
    setup.session.delta(1, 'a', FinishReason.LENGTH)
    expect(setup.events.map((event) => ('index' in event ? event.index : event.type))).toEqual([
      'started',
      1,
      1,
      0,
      0,
      'usage',
    ])
    expect(setup.events.at(-1)).toEqual(usage(2))
  })

  it('ends all choices when one fails', async () => {
    const setup = new Setup()
    await setup.start({ n: 2 })
    const error = { code: 'queue_full', message: 'full', retryAfterMs: 250 }
    setup.session.delta(2, '', FinishReason.REJECTED, { error })
    expect(setup.error).toMatchObject({ code: 'queue_full', message: 'full', retryAfterMs: 250 })
    expect(setup.session.log).toEqual(['cancel 1'])
    expect(setup.events).toHaveLength(1)
  })

  it.each([
    ['internal', new RangeError('too large'), { message: 'internal error' }],
    ['invalid_request', new GatewayError('invalid_request', 'too much'), { message: 'too much' }],
  ])('ends a request with %s that its reader cannot take, and no other', async (code, thrown, error) => {
    const setup = new Setup()
    const events: GenerateEvent[] = []
    setup.pipeline.generate(requestOf(), (event) => {
      if (event.type === 'text') throw thrown
      events.push(event)
    })
    await setup.start()
    setup.session.delta(1, 'x')
    setup.session.delta(2, 'y', FinishReason.LENGTH)
    expect(events).toMatchObject([started, { type: 'error', error: { code, ...error } }])
    expect(setup.session.log).toEqual(['cancel 1'])
    expect(setup.events.at(-1)).toEqual(usage(1))
    expect(setup.pipeline.active).toBe(0)
  })

  it('shows prompt and log probabilities when asked to echo', async () => {
    const setup = new Setup()
    await setup.start({ echo: true, topLogprobs: 1, maxTokens: 0 })
    expect(setup.session.submitted[0]).toMatchObject({ promptLogprobs: true, maxTokens: 0 })
    const promptLogprobs = [logprob('a', Number.NaN), logprob('b', -2)]
    setup.session.delta(1, '', FinishReason.LENGTH, { promptLogprobs })
    expect(setup.events[1]).toMatchObject({
      type: 'text',
      text: 'ab',
      tokens: [97, 98],
      logprobs: [
        { id: 97, token: 'a', logprob: null },
        { id: 98, token: 'b', logprob: -2, top: [{ id: 98, token: 'b', logprob: -2 }] },
      ],
    })
    expect(setup.events.slice(2)).toEqual([{ type: 'finished', index: 0, reason: 'length' }, usage(0)])
  })

  it('answers an echo without tokens or log probabilities by itself', async () => {
    const setup = new Setup()
    await setup.start({ echo: true, maxTokens: 0, n: 2 })
    expect(setup.session.submitted).toEqual([])
    expect(setup.events).toEqual([started, ...echoed(0), ...echoed(1), usage(0)])
  })

  it.each([
    [
      40,
      4,
      `the prompt has 40 tokens and max_tokens is 4, but 'm:int4' has a context of 32 tokens; no rung would fit`,
      'prompt',
    ],
    [
      30,
      4,
      `the prompt has 30 tokens and max_tokens is 4, but 'm:int4' has a context of 32 tokens; no rung would fit`,
      'max_tokens',
    ],
    [32, undefined, `the prompt has 32 tokens, but 'm:int4' has a context of 32 tokens; no rung would fit`, 'prompt'],
  ])('refuses a prompt of %d tokens with max_tokens %s', async (length, maxTokens, message, param) => {
    const setup = new Setup()
    const input = { kind: 'text' as const, text: 'a'.repeat(length) }
    await setup.start({ input }, maxTokens)
    expect(setup.error).toMatchObject({ code: 'context_length_exceeded', message, param })
    expect(setup.session.submitted).toEqual([])
  })

  it('gives an answer without max_tokens what the context leaves', async () => {
    const setup = new Setup()
    await setup.start({ input: { kind: 'tokens', tokens: [1, 2, 3] } }, undefined)
    expect(setup.session.submitted[0]?.maxTokens).toBe(CONTEXT - 3)
  })

  it.each([
    [{ input: { kind: 'tokens', tokens: [70_000] } }, 'prompt'],
    [{ input: { kind: 'text', text: '' } }, 'prompt'],
  ] as [Partial<GenerateRequest>, string][])('refuses %j', async (overrides, param) => {
    const setup = new Setup()
    await setup.start(overrides)
    expect(setup.error).toMatchObject({ code: 'invalid_request', param })
  })

  it('cancels, pauses and resumes the sequences, and is quiet after the end', async () => {
    const setup = new Setup()
    const handle = await setup.start({ n: 2 })
    handle.pause()
    handle.resume()
    handle.cancel()
    handle.cancel()
    handle.pause()
    expect(setup.session.log).toEqual(['pause 1', 'pause 2', 'resume 1', 'resume 2', 'cancel 1', 'cancel 2'])
    expect(setup.events.map(({ type }) => type)).toEqual(['error'])
    expect(setup.error?.code).toBe('cancelled')
    expect(setup.pipeline.active).toBe(0)
  })

  it('waits for the engine and runs when it comes back', async () => {
    const setup = new Setup()
    setup.session.open = false
    await setup.start()
    expect(setup.session.submitted).toEqual([])
    setup.session.open = true
    setup.changed()
    await settle()
    expect(setup.session.submitted).toHaveLength(1)
  })

  it('refuses with 503 when the engine does not come in time', async () => {
    const setup = new Setup({ engineWaitMs: 1 })
    setup.session.open = false
    await setup.start()
    expect(setup.error).toMatchObject({ code: 'engine_unavailable', retryAfterMs: 2000 })
  })

  it('says at once when every rung has failed', async () => {
    const setup = new Setup()
    for (const variant of setup.model.variants) variant.state = 'failed'
    await setup.start()
    expect(setup.error).toMatchObject({ code: 'engine_unavailable' })
  })

  it('can be cancelled while it waits', async () => {
    const setup = new Setup()
    setup.session.open = false
    const handle = await setup.start()
    handle.cancel()
    await settle()
    setup.session.open = true
    setup.changed()
    await settle()
    expect(setup.events.map(({ type }) => type)).toEqual(['error'])
    expect(setup.session.submitted).toEqual([])
  })

  it('drains: lets requests end and refuses new ones', async () => {
    const setup = new Setup()
    await setup.start()
    const drained = setup.pipeline.drain(10_000)
    const refused: GenerateEvent[] = []
    setup.pipeline.generate(requestOf(), (event) => refused.push(event))
    await settle()
    expect(refused).toMatchObject([{ type: 'error', error: { code: 'shutting_down' } }])
    setup.session.delta(1, 'x', FinishReason.LENGTH)
    await drained
    expect(setup.events.at(-1)).toEqual(usage(1))
  })
})

describe('a place that a request does not use', () => {
  /** The gate of the setup's engine is shut for a suspect that is tried there. */
  async function shut({ pipeline: { gate }, session }: Setup): Promise<Standing> {
    const [suspect, dead] = [new Standing(), {}]
    void gate.enter(suspect, dead)
    gate.lost(suspect, dead)
    gate.verdict(dead, true)
    void gate.enter(suspect, session)
    await settle()
    return suspect
  }

  it('is given back when the request is cancelled at the gate', async () => {
    const setup = new Setup()
    await shut(setup)
    const handle = await setup.start()
    expect([setup.pipeline.gate.waiting, setup.unsent]).toEqual([1, []])
    handle.cancel()
    expect(setup.unsent).toMatchObject([{ variant: 'm:int4' }])
    await settle()
    expect([setup.pipeline.gate.waiting, setup.unsent.length, setup.session.submitted]).toEqual([0, 1, []])
  })

  it('is given back when its session ends while the request waits for its turn', async () => {
    const setup = new Setup()
    const suspect = await shut(setup)
    await setup.start()
    const { session } = setup
    setup.die()
    setup.pipeline.gate.lost(suspect, session)
    await setup.restart()
    expect(setup.unsent).toHaveLength(1)
    setup.pipeline.gate.end(suspect)
    await settle()
    expect(setup.session.submitted).toHaveLength(1)
    expect(setup.unsent).toHaveLength(1)
  })

  it('is given back when its engine is ending', async () => {
    const setup = new Setup()
    setup.session.open = false
    setup.session.dying = true
    await setup.start()
    const given = setup.unsent.length
    expect(given).toBeGreaterThan(0)
    await setup.restart()
    expect([setup.session.submitted.length, setup.unsent.length]).toEqual([1, given])
  })

  it('is given back when the answer does not fit there', async () => {
    const setup = new Setup()
    for (const rung of setup.model.variants) rung.maxModelLen = 2 * CONTEXT
    await setup.start({ maxTokens: CONTEXT })
    expect(setup.error?.code).toBe('context_length_exceeded')
    expect(setup.unsent).toHaveLength(1)
  })
})

describe('choiceSeed', () => {
  it.each([
    [0, 0, 0],
    [7, 2, 9],
    [-1, 0, 2 ** 53 - 1],
    [-1, 1, 0],
    [2 ** 53 - 1, 1, 0],
  ])('%d + %d = %d', (seed, index, expected) => {
    expect(choiceSeed(seed, index)).toBe(expected)
  })
})
