/**
 * Whatever becomes of the engine, the rungs and the clients, in whatever order: every request that the gateway takes ends
 * in its whole answer or in one error of the catalogue, and what it was told before is right.
 */
import assert from 'node:assert/strict'
import { isDeepStrictEqual } from 'node:util'
import * as fc from 'fast-check'
import { expect, it } from 'vitest'
import { ERROR_CODES } from '../../gateway/errors.js'
import type { GenerateEvent, GenerateHandle, GenerateRequest } from '../../gateway/request.js'
import { FinishReason, type SequenceError } from '../../proto/gen/edgeshift/v1/engine.js'
import { CONTEXT, type FakeSession, ladder, requestOf, settle, Setup } from '../support/fake-pipeline.js'
import { DEFAULT_SAMPLING } from '../support/sampling.js'

const PRECISIONS = ['fp16', 'int8', 'int4'] as const
const RUNNING = FinishReason.UNSPECIFIED

/** The token that a model gives a seed at a place of its answer. */
const tokenAt = (seed: number, place: number): number => 97 + ((seed * 31 + place * 7) % 26)
const answerOf = (seed: number, count: number): number[] => Array.from({ length: count }, (_, i) => tokenAt(seed, i))

const request = fc.record({
  maxTokens: fc.integer({ min: 1, max: 12 }),
  n: fc.integer({ min: 1, max: 3 }),
  rung: fc.constantFrom('m', 'm:fp16', 'm:int4'),
  degrade: fc.constantFrom('allow' as const, 'allow' as const, 'forbid' as const),
  prompt: fc.oneof(
    { weight: 9, arbitrary: fc.integer({ min: 1, max: CONTEXT - 12 }) },
    fc.integer({ max: CONTEXT, min: CONTEXT - 11 }),
  ),
})

/** What an engine can say of a sequence in the place of tokens. */
const verdict = fc.constantFrom<[FinishReason, string]>(
  [FinishReason.ERROR, 'engine_failed'],
  [FinishReason.ERROR, 'shutting_down'],
  [FinishReason.REJECTED, 'engine_unavailable'],
  [FinishReason.REJECTED, 'queue_full'],
  [FinishReason.REJECTED, 'a code of another version'],
  [FinishReason.DEADLINE, ''],
)
const sketch = fc.constantFrom(
  'ready' as const,
  'ready' as const,
  'loading' as const,
  'failed' as const,
  'open' as const,
)

const command = fc.oneof(
  { weight: 5, arbitrary: fc.record({ kind: fc.constant('ask' as const), request }) },
  {
    weight: 8,
    arbitrary: fc.record({ kind: fc.constant('step' as const), tokens: fc.integer({ min: 1, max: 4 }), at: fc.nat(9) }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('fail' as const), at: fc.nat(20), verdict }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('die' as const), byItself: fc.boolean() }) },
  { weight: 2, arbitrary: fc.constant({ kind: 'restart' as const }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('cancel' as const), at: fc.nat(20) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('pause' as const), at: fc.nat(20), paused: fc.boolean() }) },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant('rungs' as const), states: fc.tuple(sketch, sketch, sketch) }),
  },
)
type Command = typeof command extends fc.Arbitrary<infer T> ? T : never

interface Asked {
  request: GenerateRequest & { maxTokens: number; sampling: { seed: number } }
  events: GenerateEvent[]
  handle: GenerateHandle
}

/** A gateway's pipeline over an engine that answers by tokenAt. */
class Box {
  readonly setup = new Setup({ maxEngineWaiting: 1000, engineWaitMs: 600_000, failoverWaitMs: 600_000 })
  readonly asked: Asked[] = []
  /** Tokens that each sequence of this engine has been given. */
  private sent = new Map<number, number>()
  /** It said that it stops, so it will. */
  private stopping = false

  constructor() {
    this.setup.model.variants = ladder(PRECISIONS)
  }

  private get session(): FakeSession {
    return this.setup.session
  }

  ask({ maxTokens, n, rung, degrade, prompt }: typeof request extends fc.Arbitrary<infer T> ? T : never): void {
    const id = this.asked.length
    const tokens = Array.from({ length: prompt }, (_, i) => 65 + ((id + i) % 26))
    const sampling = { ...DEFAULT_SAMPLING, seed: id * 10 }
    const asked = { ...requestOf(), id: `r${id}`, model: rung, input: { kind: 'tokens' as const, tokens } }
    const whole = { ...asked, maxTokens, n, degrade, sampling }
    const events: GenerateEvent[] = []
    this.asked.push({
      request: whole,
      events,
      handle: this.setup.pipeline.generate(whole, (event) => events.push(event)),
    })
  }

  /** Ids of the sequences that the engine works on. */
  private get running(): number[] {
    return this.session.open ? [...this.session.listeners.keys()] : []
  }

  /** Gives a sequence tokens, from where its submission says that it stands. */
  step(at: number, tokens: number): void {
    const { running } = this
    const id = running[at % Math.max(1, running.length)]
    const submission = id === undefined ? undefined : this.session.submitted[id - 1]
    if (id === undefined || !submission) return
    const { prompt, replayedTokens, maxTokens, sampling } = submission
    const seed = sampling?.seed ?? 0
    // Whatever was told is read again, and nothing else.
    assert.deepEqual(prompt.slice(prompt.length - replayedTokens), answerOf(seed, replayedTokens))
    const sent = this.sent.get(id) ?? 0
    const count = Math.min(tokens, maxTokens - sent)
    this.sent.set(id, sent + count)
    const part = Array.from({ length: count }, (_, i) => tokenAt(seed, replayedTokens + sent + i))
    const start = sent === 0 ? { start: { cachedTokens: 0, queueUs: 1 } } : {}
    this.session.delta(id, part, sent + count === maxTokens ? FinishReason.LENGTH : RUNNING, start)
  }

  fail(at: number, [reason, code]: [FinishReason, string]): void {
    const { running } = this
    const id = running[at % Math.max(1, running.length)]
    const error: SequenceError = { code, message: 'the engine says no', retryAfterMs: 5 }
    if (id === undefined) return
    this.stopping ||= code === 'shutting_down'
    this.session.delta(id, [], reason, { error })
  }

  async die(byItself: boolean): Promise<void> {
    const { session } = this
    if (!session.open) return
    this.setup.die()
    await settle()
    this.setup.pipeline.gate.verdict(session, byItself)
  }

  async restart(): Promise<void> {
    if (this.session.open) return
    this.sent = new Map()
    this.stopping = false
    await this.setup.restart()
  }

  set(states: readonly ('ready' | 'loading' | 'failed' | 'open')[]): void {
    const [fp16 = 'ready', int8 = 'ready', int4 = 'ready'] = states
    this.setup.model.variants = ladder(PRECISIONS, { fp16, int8, int4 })
    this.setup.changed()
  }

  /** All is well from now on: whoever is left is served. */
  async finish(): Promise<void> {
    for (const { handle } of this.asked) handle.resume()
    this.set(['ready', 'ready', 'ready'])
    if (this.stopping) await this.die(false)
    await this.restart()
    for (let round = 0; this.setup.pipeline.active > 0; round++) {
      if (round > 2000) throw new Error(`${this.setup.pipeline.active} requests are never answered`)
      for (let i = this.running.length; i-- > 0;) this.step(i, 2)
      await settle()
    }
  }
}

async function act(box: Box, one: Command): Promise<void> {
  if (one.kind === 'ask') box.ask(one.request)
  else if (one.kind === 'step') for (let i = 0; i <= one.at; i++) box.step(i, one.tokens)
  else if (one.kind === 'fail') box.fail(one.at, one.verdict)
  else if (one.kind === 'die') await box.die(one.byItself)
  else if (one.kind === 'restart') await box.restart()
  else if (one.kind === 'rungs') box.set(one.states)
  else {
    const { handle } = box.asked[one.at % Math.max(1, box.asked.length)] ?? {}
    if (one.kind === 'cancel') handle?.cancel()
    else if (one.paused) handle?.pause()
    else handle?.resume()
  }
  await settle()
}

/** What is wrong with what a client was told; empty = nothing. */
function faultsOf({ request: { maxTokens, n, sampling }, events }: Asked): string[] {
  const types = events.map(({ type }) => type)
  const ends = events.filter(({ type }) => type === 'usage' || type === 'error')
  const last = events.at(-1)
  const faults: string[] = []
  const check = (holds: boolean, what: string): void => void (holds || faults.push(what))
  check(ends.length === 1 && ends[0] === last, `one end, and nothing after it: ${types.join()}`)
  const begun = types.filter((type) => type !== 'error')
  check(begun.filter((type) => type === 'started').length === (begun.length > 0 ? 1 : 0), 'it starts once')
  check(begun.length === 0 || begun[0] === 'started', 'it starts first')
  for (let index = 0; index < n; index++) {
    const told = events.flatMap((event) => (event.type === 'text' && event.index === index ? event.tokens : []))
    check(
      isDeepStrictEqual(told, answerOf(sampling.seed + index, told.length)),
      `choice ${index} is right: ${told.join()}`,
    )
    const finished = events.filter((event) => event.type === 'finished' && event.index === index).length
    check(finished === (told.length === maxTokens ? 1 : 0), `choice ${index} is finished once when it is whole`)
    check(last?.type !== 'usage' || told.length === maxTokens, `choice ${index} is whole`)
  }
  if (last?.type === 'usage') check(last.usage.completionTokens === n * maxTokens, 'every token is counted once')
  if (last?.type === 'error') check(ERROR_CODES.includes(last.error.code) && last.error.message !== '', 'a clear error')
  return faults
}

it('every request ends in its whole answer or in one error', { timeout: 120_000 }, async () => {
  const seen = new Map<string, number>()
  await fc.assert(
    fc.asyncProperty(fc.array(command, { minLength: 5, maxLength: 60, size: 'max' }), async (commands) => {
      const box = new Box()
      for (const one of commands) await act(box, one)
      await box.finish()
      for (const asked of box.asked) {
        expect(faultsOf(asked)).toEqual([])
        const end = asked.events.at(-1)
        const name = end?.type === 'error' ? end.error.code : 'whole'
        seen.set(name, (seen.get(name) ?? 0) + 1)
      }
      expect(box.setup.pipeline.active).toBe(0)
    }),
    { numRuns: 1000 },
  )
  console.log('ends of requests:', JSON.stringify(Object.fromEntries(seen)))
  // Otherwise the commands would not try much.
  for (const end of ['whole', 'cancelled', 'queue_full', 'deadline_exceeded', 'degrade_forbidden', 'poison_request']) {
    expect(seen.get(end)).toBeGreaterThan(0)
  }
})
