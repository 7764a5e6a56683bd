import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { GenerateEvent } from '../../gateway/request.js'
import { loadTextModel } from '../../gateway/text/model-text.js'
import type { TextModel } from '../../gateway/text/types.js'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { CONTEXT, FakeSession, ladder, requestOf, settle, Setup } from '../support/fake-pipeline.js'
import { ofType, PROMPT, RUNNING, START, textOf } from '../support/stream-events.js'
import { tinyTokenizerAssets, tinyTokens } from '../support/tiny-tokenizer.js'

let text: TextModel

beforeAll(async () => {
  text = await loadTextModel(tinyTokenizerAssets(CONTEXT), CONTEXT)
})
afterAll(() => text.close())
/** A setup with a ladder whose rungs are ready. */
function withLadder(): Setup {
  const setup = new Setup({}, text)
  setup.model.variants = ladder(LADDER)
  return setup
}

const LADDER = ['fp16', 'int8', 'int4'] as const

const FAILED_STEP = { error: { code: 'engine_failed', message: 'the engine failed in this step', retryAfterMs: 0 } }

/** Fails the sequence `id` of the setup's session in a step. */
async function failStep(setup: Setup, id: number): Promise<void> {
  setup.session.delta(id, [], FinishReason.ERROR, FAILED_STEP)
  await settle()
}

describe('an engine that stops by itself', () => {
  it('is waited for until it is gone and the next one is there', async () => {
    const setup = new Setup({}, text)
    await setup.start(PROMPT)
    setup.session.delta(1, tinyTokens('x'), RUNNING, START)
    const error = { code: 'shutting_down', message: 'the engine is stopping', retryAfterMs: 0 }
    setup.session.delta(1, [], FinishReason.ERROR, { error })
    await settle()
    setup.changed()
    await settle()
    expect(setup.session.submitted).toHaveLength(1)
    setup.die()
    await setup.restart()
    await settle()
    expect(setup.session.submitted).toMatchObject([{ prompt: tinyTokens('abx'), replayedTokens: 1 }])
    expect(ofType(setup.events, 'degraded')).toMatchObject([{ cause: 'engine_failed' }])
  })

  it('is not waited for when the client has left', async () => {
    const setup = new Setup({}, text)
    const handle = await setup.start(PROMPT)
    const error = { code: 'shutting_down', message: 'the engine is stopping', retryAfterMs: 0 }
    setup.session.delta(1, [], FinishReason.ERROR, { error })
    await settle()
    expect(setup.waiting).toBe(1)
    handle.cancel()
    await settle()
    expect(setup.error).toMatchObject({ code: 'cancelled' })
    expect(setup.waiting).toBe(0)
  })

  it('is not waited for by a request of which another choice has failed', async () => {
    const setup = new Setup({}, text)
    await setup.start({ ...PROMPT, n: 2 })
    const error = { code: 'shutting_down', message: 'the engine is stopping', retryAfterMs: 0 }
    setup.session.delta(1, [], FinishReason.ERROR, { error })
    setup.session.delta(2, [], FinishReason.DEADLINE)
    await settle()
    expect(setup.error).toMatchObject({ code: 'deadline_exceeded' })
    expect(setup.waiting).toBe(0)
  })
})

describe('a stream whose rung fails', () => {
  it('is tried once more where it was, then at the next rung', async () => {
    const setup = withLadder()
    await setup.start(PROMPT)
    setup.session.delta(1, tinyTokens('x'), RUNNING, START)
    await failStep(setup, 1)
    await failStep(setup, 2)
    expect(setup.session.submitted.map(({ variant }) => variant)).toEqual(['m:fp16', 'm:fp16', 'm:int8'])
    expect(setup.session.submitted[2]).toMatchObject({ prompt: tinyTokens('abx'), replayedTokens: 1, maxTokens: 3 })
    setup.session.delta(3, tinyTokens('yz'), FinishReason.LENGTH)
    expect(ofType(setup.events, 'degraded')).toMatchObject([
      { variant: 'm:fp16', cause: 'rung_failed' },
      {
        variant: 'm:int8',
        cause: 'rung_failed',
        reason: "degraded_failure: 'm:fp16' failed; the nearest rung goes on",
      },
    ])
    expect(textOf(setup.events)).toBe('xyz')
  })

  it('is not blamed for the death of an engine that its client did not wait for', async () => {
    const setup = new Setup({}, text)
    const handle = await setup.start(PROMPT)
    setup.die()
    await setup.restart()
    let confirm = (): void => undefined
    setup.confirmed = new Promise((resolve) => (confirm = resolve))
    await failStep(setup, 1)
    handle.cancel()
    setup.die()
    confirm()
    await setup.restart()
    setup.pipeline.generate({ ...requestOf(), ...PROMPT }, () => undefined)
    await settle()
    // Nobody is on trial, so that the next request runs at once.
    expect(setup.session.submitted).toHaveLength(1)
  })

  it('keeps nobody waiting for its trial while it waits for the rung', async () => {
    const setup = withLadder()
    await setup.start({ ...PROMPT, model: 'm:int4', degrade: 'forbid' })
    const { session } = setup
    setup.die()
    setup.pipeline.gate.verdict(session, true)
    await setup.restart()
    setup.pipeline.generate({ ...requestOf(), ...PROMPT, model: 'm:int8' }, () => undefined)
    await settle()
    const submitted = () => setup.session.submitted.map(({ variant }) => variant)
    // It is a suspect: those that are new wait until it has been tried.
    expect(submitted()).toEqual(['m:int4'])
    setup.model.variants = ladder(LADDER, { int4: 'loading' })
    await failStep(setup, 1)
    await settle()
    expect(setup.waiting).toBe(1)
    expect(submitted()).toEqual(['m:int4', 'm:int8'])
    // It is still to be tried alone when the rung is there again.
    setup.model.variants = ladder(LADDER)
    setup.changed()
    await settle()
    await settle()
    expect(submitted()).toEqual(['m:int4', 'm:int8', 'm:int4'])
    setup.pipeline.generate({ ...requestOf(), ...PROMPT, model: 'm:int8' }, () => undefined)
    await settle()
    expect(setup.pipeline.gate.waiting).toBe(1)
  })

  it('gets a clean error instead of another rung when it forbids to degrade', async () => {
    const setup = withLadder()
    await setup.start({ ...PROMPT, degrade: 'forbid' })
    setup.session.delta(1, tinyTokens('x'), RUNNING, START)
    await failStep(setup, 1)
    await failStep(setup, 2)
    expect(setup.error).toMatchObject({
      code: 'degrade_forbidden',
      message: `'m:fp16' failed and the request forbids another rung`,
    })
    expect(setup.session.submitted).toHaveLength(2)
  })

  it('is tried once more at the rung of the choice that failed, wherever another went on', async () => {
    const setup = withLadder()
    await setup.start({ ...PROMPT, n: 2 })
    for (const id of [1, 2]) setup.session.delta(id, tinyTokens('x'), RUNNING, START)
    await failStep(setup, 1)
    await failStep(setup, 3)
    setup.session.delta(4, tinyTokens('y'))
    await failStep(setup, 2)
    const rungs = ['m:fp16', 'm:fp16', 'm:fp16', 'm:int8', 'm:fp16']
    expect(setup.session.submitted.map(({ variant }) => variant)).toEqual(rungs)
  })

  it('is tried at another engine before the next rung, which is tried, too', async () => {
    const setup = withLadder()
    for (const rung of setup.model.variants) rung.elsewhere = [{ ...rung, engine: 1 }]
    await setup.start({ ...PROMPT, maxTokens: 8 })
    for (let id = 1; id <= 7; id++) await failStep(setup, id)
    const rungs = ['m:fp16', 'm:fp16', 'm:fp16', 'm:int8', 'm:int8', 'm:int4', 'm:int4']
    expect(setup.session.submitted.map(({ variant }) => variant)).toEqual(rungs)
    expect(setup.engines).toEqual([0, 0, 1, 0, 1, 0, 1])
    expect(setup.error).toMatchObject({ code: 'engine_failed' })
  })

  it('gives up only when each rung has failed', async () => {
    const setup = withLadder()
    await setup.start(PROMPT)
    for (let id = 1; id <= 4; id++) await failStep(setup, id)
    expect(setup.session.submitted.map(({ variant }) => variant)).toEqual(['m:fp16', 'm:fp16', 'm:int8', 'm:int4'])
    expect(setup.error).toMatchObject({ code: 'engine_failed' })
  })

  it('leaves rungs that refuse it, which it cannot be blamed for, for the one that does not', async () => {
    const setup = withLadder()
    await setup.start(PROMPT)
    const error = { code: 'engine_unavailable', message: 'm:fp16 is not loaded', retryAfterMs: 0 }
    for (let id = 1; id <= 3; id++) {
      setup.session.delta(id, [], FinishReason.REJECTED, { error })
      await settle()
    }
    expect(setup.session.submitted.map(({ variant }) => variant)).toEqual(['m:fp16', 'm:fp16', 'm:int8', 'm:int4'])
    setup.session.delta(4, tinyTokens('xyz'), FinishReason.LENGTH, START)
    expect(textOf(setup.events)).toBe('xyz')
  })

  it('moves when the rung does not come back with the engine, and only then', async () => {
    const setup = withLadder()
    await setup.start(PROMPT)
    setup.session.delta(1, tinyTokens('x'), RUNNING, START)
    setup.die()
    setup.model.variants = ladder(LADDER, { fp16: 'loading' })
    await setup.restart()
    expect(setup.session.submitted).toEqual([])
    setup.model.variants = ladder(LADDER, { fp16: 'failed' })
    setup.changed()
    await settle()
    expect(setup.session.submitted).toMatchObject([{ variant: 'm:int8', replayedTokens: 1 }])
    expect(ofType(setup.events, 'degraded')).toMatchObject([{ variant: 'm:int8', cause: 'engine_failed' }])
  })
})

describe('a stream with choices on two engines', () => {
  /** Two choices on one engine, of which the first fails alone and goes on at another, beside a stranger's two streams. */
  async function split(overrides: Parameters<Setup['start']>[0] = {}) {
    const setup = new Setup({}, text)
    const first = setup.session
    const handle = await setup.start({ ...PROMPT, n: 2, ...overrides })
    const second = new FakeSession()
    setup.session = second
    const stranger: GenerateEvent[] = []
    setup.pipeline.generate({ ...requestOf(), ...PROMPT, id: 's', n: 2 }, (event) => stranger.push(event))
    await settle()
    for (const id of [1, 2]) first.delta(id, tinyTokens('x'), RUNNING, START)
    first.delta(1, [], FinishReason.ERROR, FAILED_STEP)
    await settle()
    expect(second.submitted.map(({ replayedTokens }) => replayedTokens)).toEqual([0, 0, 1])
    return { setup, handle, first, second, stranger }
  }

  it('is held up, let go on and cancelled by the ids of each', async () => {
    const { handle, first, second, stranger, setup } = await split()
    handle.pause()
    handle.resume()
    handle.cancel()
    expect(first.log).toEqual(['pause 2', 'resume 2', 'cancel 2'])
    expect(second.log).toEqual(['pause 3', 'resume 3', 'cancel 3'])
    for (const id of [1, 2]) second.delta(id, tinyTokens('y'), FinishReason.LENGTH, START)
    expect(stranger.at(-1)?.type).toBe('usage')
    expect(setup.pipeline.active).toBe(0)
  })

  it('is stopped where the stop string comes', async () => {
    const { first, second } = await split({ stop: ['END'], maxTokens: 8 })
    first.delta(2, tinyTokens('END'))
    expect([first.log, second.log]).toEqual([['cancel 2'], []])
  })

  it('goes on with the choice whose engine dies, and leaves the other where it is', async () => {
    const { setup, first, second } = await split()
    first.die()
    await settle()
    expect(second.submitted.map(({ replayedTokens }) => replayedTokens)).toEqual([0, 0, 1, 1])
    for (const id of [3, 4]) second.delta(id, tinyTokens('yz'), FinishReason.LENGTH)
    expect([0, 1].map((index) => textOf(setup.events, index))).toEqual(['xyz', 'xyz'])
    expect(setup.events.at(-1)?.type).toBe('usage')
  })
})

describe('a stream with choices on two rungs', () => {
  /** Both choices fail at fp16: the first goes to int8, then the second stays. */
  async function split(): Promise<Setup> {
    const setup = withLadder()
    await setup.start({ ...PROMPT, n: 2 })
    setup.model.variants = ladder(LADDER, { fp16: 'failed', int8: 'half_open' })
    await failStep(setup, 1)
    setup.model.variants = ladder(LADDER)
    setup.session.delta(2, tinyTokens('x'), RUNNING, START)
    await failStep(setup, 2)
    expect(setup.session.submitted.slice(2).map(({ variant }) => variant)).toEqual(['m:int8', 'm:fp16'])
    return setup
  }

  it('counts tokens where they come from', async () => {
    const setup = await split()
    setup.session.delta(3, tinyTokens('xyz'), RUNNING, START)
    setup.session.delta(4, tinyTokens('x'), RUNNING, START)
    const metrics = await setup.metrics.registry.metrics()
    expect(metrics).toContain('edgeshift_generation_tokens_total{model="m",variant="m:int8"} 3')
    expect(metrics).toContain('edgeshift_generation_tokens_total{model="m",variant="m:fp16"} 2')
  })

  it('gives up being a probe of which nobody would hear how it ended', async () => {
    const setup = await split()
    expect(setup.unsent).toMatchObject([{ variant: 'm:int8', probe: true }])
  })
})
