import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadTextModel } from '../../gateway/text/model-text.js'
import type { TextModel } from '../../gateway/text/types.js'
import { FinishReason, type TokenLogprob } from '../../proto/gen/edgeshift/v1/engine.js'
import { CONTEXT, settle, Setup } from '../support/fake-pipeline.js'
import { ofType, PROMPT, RUNNING, START, textOf, tokensOf } from '../support/stream-events.js'
import { TINY_STOP_TOKEN, tinyTokenizerAssets, tinyTokens } from '../support/tiny-tokenizer.js'

let text: TextModel

beforeAll(async () => {
  text = await loadTextModel(tinyTokenizerAssets(CONTEXT), CONTEXT)
})
afterAll(() => text.close())
const logprob = (token: number): TokenLogprob => ({ token, logprob: -token, rank: 1, topTokens: [], topLogprobs: [] })

/** Begins a request, gives its first tokens and lets the engine die and come back. */
async function cut(first: number[], overrides: Parameters<Setup['start']>[0] = {}): Promise<Setup> {
  const setup = new Setup({}, text)
  await setup.start({ ...PROMPT, maxTokens: 8, ...overrides })
  const logprobs = overrides.topLogprobs === undefined ? [] : first.map(logprob)
  setup.session.delta(1, first, RUNNING, { ...START, logprobs })
  setup.die()
  await settle()
  await setup.restart()
  return setup
}

describe('a stream whose engine dies', () => {
  it('goes on as prompt and output with one event, one usage and no token lost or repeated', async () => {
    const setup = await cut(tinyTokens('xy'))
    const [again] = setup.session.submitted
    expect(again).toMatchObject({ prompt: tinyTokens('abxy'), replayedTokens: 2, maxTokens: 6 })
    expect(again?.sampling?.seed).toBe(7)
    setup.session.delta(1, tinyTokens('zw'), FinishReason.LENGTH, START)
    expect(setup.events.map(({ type }) => type)).toEqual(['started', 'text', 'degraded', 'text', 'finished', 'usage'])
    expect(ofType(setup.events, 'degraded')).toEqual([
      {
        type: 'degraded',
        index: 0,
        variant: 'm:int4',
        reason: 'highest: the best rung',
        cause: 'engine_failed',
        replayedTokens: 2,
      },
    ])
    expect(textOf(setup.events)).toBe('xyzw')
    expect(ofType(setup.events, 'usage')).toMatchObject([
      { usage: { promptTokens: 2, completionTokens: 4, cachedTokens: 1 } },
    ])
    const metrics = await setup.metrics.registry.metrics()
    expect(metrics).toContain('edgeshift_failovers_total{cause="engine_failed"} 1')
    expect(metrics).toContain('edgeshift_replayed_tokens_total 2')
    expect(metrics).toContain('edgeshift_prompt_tokens_total{model="m",variant="m:int4"} 2')
  })

  it('goes on under its grammar, which the tokens before belong to', async () => {
    const grammar = { kind: { $case: 'choice' as const, choice: { texts: ['xyz', 'xyw'] } } }
    const setup = await cut(tinyTokens('xy'), { grammar })
    expect(setup.session.submitted).toMatchObject([{ grammar, replayedTokens: 2 }])
  })

  it('is submitted again without an event when nothing of it was told', async () => {
    const setup = new Setup({}, text)
    await setup.start(PROMPT)
    setup.die()
    await settle()
    await setup.restart()
    expect(setup.session.submitted).toMatchObject([{ prompt: tinyTokens('ab'), replayedTokens: 0, maxTokens: 4 }])
    setup.session.delta(1, tinyTokens('x'), FinishReason.LENGTH, START)
    expect(setup.events.map(({ type }) => type)).toEqual(['started', 'text', 'finished', 'usage'])
  })

  it('keeps log probabilities with their tokens', async () => {
    const setup = await cut(tinyTokens('xé').slice(0, 2), { topLogprobs: 0 })
    const rest = [...tinyTokens('é').slice(1), ...tinyTokens('z')]
    setup.session.delta(1, rest, FinishReason.LENGTH, { logprobs: rest.map(logprob) })
    const told = ofType(setup.events, 'text')
    for (const { tokens, logprobs } of told) expect(logprobs?.map(({ id }) => id)).toEqual(tokens)
    expect(told.flatMap(({ logprobs }) => logprobs?.map((entry) => entry.logprob))).toEqual(
      tinyTokens('xéz').map((token) => -token),
    )
  })

  it('does not ask for the log probabilities of an echoed prompt again', async () => {
    const setup = await cut(tinyTokens('x'), { topLogprobs: 0, echo: true })
    expect(setup.session.submitted[0]).toMatchObject({ promptLogprobs: false, replayedTokens: 1 })
    setup.session.delta(1, tinyTokens('y'), FinishReason.LENGTH, START)
    expect(textOf(setup.events)).toBe('abxy')
  })

  it('finds a stop string that spans the cut', async () => {
    const setup = await cut(tinyTokens('x ST'), { stop: ['STOP'] })
    expect(textOf(setup.events)).toBe('x ')
    setup.session.delta(1, tinyTokens('OP and more'))
    expect(setup.session.log).toEqual(['cancel 1'])
    expect(textOf(setup.events)).toBe('x ')
    expect(setup.events.slice(-2)).toMatchObject([
      { type: 'finished', reason: 'stop' },
      { type: 'usage', usage: { completionTokens: 6 } },
    ])
  })

  it('tells text that was held back for a stop string which does not come', async () => {
    const setup = await cut(tinyTokens('x ST'), { stop: ['STOP'] })
    setup.session.delta(1, tinyTokens('AY'), FinishReason.LENGTH)
    expect(textOf(setup.events)).toBe('x STAY')
    expect(tokensOf(setup.events)).toEqual(tinyTokens('x STAY'))
  })

  it('completes a character that spans the cut', async () => {
    const smile = tinyTokens('😀')
    const setup = await cut(smile.slice(0, 3))
    expect(textOf(setup.events)).toBe('')
    expect(setup.session.submitted[0]).toMatchObject({ replayedTokens: 3, maxTokens: 5 })
    setup.session.delta(1, smile.slice(3), FinishReason.LENGTH)
    expect(textOf(setup.events)).toBe('😀')
    expect(tokensOf(setup.events)).toEqual(smile)
  })

  it('counts max_tokens over both parts', async () => {
    const setup = await cut(tinyTokens('xyz'), { maxTokens: 4 })
    expect(setup.session.submitted[0]).toMatchObject({ replayedTokens: 3, maxTokens: 1 })
  })

  it('ends where max_tokens was reached exactly at the cut', async () => {
    const setup = await cut(tinyTokens('wxyz'), { maxTokens: 4 })
    // A budget of nothing beside a replay is what the engine answers at once, with LENGTH.
    expect(setup.session.submitted[0]).toMatchObject({ replayedTokens: 4, maxTokens: 0 })
    setup.session.delta(1, [], FinishReason.LENGTH)
    expect(textOf(setup.events)).toBe('wxyz')
    expect(setup.events.at(-1)).toMatchObject({ usage: { completionTokens: 4 } })
  })

  it('goes on with every choice that was not finished', async () => {
    const setup = new Setup({}, text)
    await setup.start({ ...PROMPT, n: 3 })
    setup.session.delta(1, tinyTokens('a'), RUNNING, START)
    setup.session.delta(2, [...tinyTokens('b'), TINY_STOP_TOKEN], FinishReason.STOP, START)
    setup.session.delta(3, tinyTokens('cc'), RUNNING, START)
    setup.die()
    await settle()
    await setup.restart()
    expect(setup.session.submitted.map(({ prompt, sampling }) => [prompt, sampling?.seed])).toEqual([
      [tinyTokens('aba'), 7],
      [tinyTokens('abcc'), 9],
    ])
    expect(ofType(setup.events, 'degraded')).toMatchObject([{ index: 0, replayedTokens: 3 }])
    setup.session.delta(1, tinyTokens('A'), FinishReason.LENGTH)
    setup.session.delta(2, tinyTokens('C'), FinishReason.LENGTH)
    expect([0, 1, 2].map((index) => textOf(setup.events, index))).toEqual(['aA', 'b', 'ccC'])
    expect(setup.events.at(-1)).toMatchObject({ type: 'usage', usage: { completionTokens: 7 } })
  })

  it('stays paused for a reader that is slow', async () => {
    const setup = new Setup({}, text)
    const handle = await setup.start(PROMPT)
    setup.session.delta(1, tinyTokens('x'), RUNNING, START)
    handle.pause()
    setup.die()
    await settle()
    await setup.restart()
    expect(setup.session.log).toEqual(['pause 1'])
    handle.resume()
    expect(setup.session.log).toEqual(['pause 1', 'resume 1'])
  })

  it('can be cancelled while it waits for the engine', async () => {
    const setup = new Setup({}, text)
    const handle = await setup.start(PROMPT)
    setup.session.delta(1, tinyTokens('x'), RUNNING, START)
    setup.die()
    await settle()
    handle.cancel()
    await setup.restart()
    expect(setup.session.submitted).toEqual([])
    expect(setup.error?.code).toBe('cancelled')
    expect(setup.pipeline.active).toBe(0)
  })

  it('ends with engine_unavailable when the engine does not come back in time', async () => {
    const setup = new Setup({ failoverWaitMs: 1 }, text)
    await setup.start(PROMPT)
    setup.session.delta(1, tinyTokens('x'), RUNNING, START)
    setup.die()
    await settle()
    expect(setup.error).toMatchObject({ code: 'engine_unavailable' })
    expect(setup.pipeline.active).toBe(0)
  })
})

describe('the deadline of a stream whose engine dies', () => {
  it('holds for the whole request', async () => {
    const setup = new Setup({}, text)
    await setup.start({ ...PROMPT, deadlineMs: 60_000 })
    setup.die()
    await settle()
    await setup.restart()
    const [again] = setup.session.submitted
    expect(again?.deadlineMs).toBeGreaterThan(0)
    expect(again?.deadlineMs).toBeLessThanOrEqual(60_000)
  })
})
