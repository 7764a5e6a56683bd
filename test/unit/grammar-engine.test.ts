import { afterAll, describe, expect, it } from 'vitest'
import { GrammarDesk } from '../../engine/grammar/desk.js'
import { GrammarHome } from '../../engine/grammar/grammar-home.js'
import { Grammars } from '../../engine/grammar/grammars.js'
import { KV_UNIT_BYTES } from '../../engine/native.js'
import { FinishReason, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { accepts, tinyKeeper, tinyVocabulary } from '../support/grammar-walk.js'
import { type FakeEngine, type FakeEngineOptions, neutralSampling, submitOf } from '../support/fake-engine.js'
import { collect, fakeEngines } from '../support/fake-engines.js'
import { fakeAnswer, FakeExecutor } from '../support/fake-executor.js'
import { TINY_STOP_TOKEN, TINY_VOCAB_SIZE, tinyTokens } from '../support/tiny-tokenizer.js'

const start = fakeEngines()
/** Threads take a moment to start: those of this file share theirs, which stay when an engine stops. */
const grammars = new Grammars()
afterAll(() => grammars.close())

class SharedDesk extends GrammarDesk {
  override close(): void {}
}

function engineWith(
  desk = new SharedDesk(() => tinyVocabulary, grammars),
  options: FakeEngineOptions = {},
): FakeEngine {
  const executor = new FakeExecutor(new Map(), 4, TINY_VOCAB_SIZE)
  const model = { executor, blockBytes: KV_UNIT_BYTES, vocabSize: TINY_VOCAB_SIZE }
  const fake = start({ depth: 2, model, ...options })
  fake.engine.grammars = desk
  return fake
}

/** An engine with the threads that it has started. */
function engineWithOwnHomes(): { fake: FakeEngine; homes: GrammarHome[] } {
  const homes: GrammarHome[] = []
  const own = new Grammars((vocabulary) => {
    const home = new GrammarHome(vocabulary)
    homes.push(home)
    return home
  })
  return { fake: engineWith(new GrammarDesk(() => tinyVocabulary, own)), homes }
}

const choice = (...texts: string[]): Grammar['kind'] => ({ $case: 'choice', choice: { texts } })
const regex = (pattern: string): Grammar['kind'] => ({ $case: 'regex', regex: pattern })

function asked(id: number, kind: Grammar['kind'], overrides: Partial<Submit> = {}): Submit {
  const sampling = neutralSampling({ stopTokenIds: [TINY_STOP_TOKEN], seed: id })
  return submitOf(id, [7, 8, 9], { grammar: { kind }, sampling, maxTokens: 40, ...overrides })
}

function textOf(tokens: readonly number[]): string {
  return Buffer.from(tokens.filter((id) => id !== TINY_STOP_TOKEN).map((id) => id - 3)).toString()
}

describe('an answer with a grammar', () => {
  it('follows it and ends where it may', async () => {
    const fake = engineWith()
    const texts = ['0', 'no', 'yes', 'übermorgen']
    const kind = choice(...texts)
    const answers = Array.from({ length: 8 }, (_, id) => collect(fake, asked(id, kind)))
    for (const answer of answers) {
      expect((await answer.done).finishReason).toBe(FinishReason.STOP)
      expect(texts).toContain(textOf(answer.tokens))
    }
    // The fake draws by its seed: all would be alike only by chance.
    expect(new Set(answers.map(({ tokens }) => textOf(tokens))).size).toBeGreaterThan(1)
  })

  it('leaves the others of its steps alone', async () => {
    const fake = engineWith()
    const free = Array.from({ length: 3 }, (_, id) => collect(fake, submitOf(id, [id, 5], { maxTokens: 20 })))
    const bound = collect(fake, asked(9, regex('[ab]{15}')))
    await bound.done
    expect(textOf(bound.tokens)).toMatch(/^[ab]{15}$/)
    for (const [id, answer] of free.entries()) {
      await answer.done
      expect(answer.tokens).toEqual(fakeAnswer([id, 5], 20, 0, TINY_VOCAB_SIZE))
    }
  })

  it('takes stop tokens only where the text may end, and no others there', async () => {
    const stop = tinyTokens('b')[0] ?? 0
    const sampling = neutralSampling({ stopTokenIds: [stop, TINY_STOP_TOKEN] })
    const fake = engineWith()
    const answers = Array.from({ length: 8 }, (_, id) =>
      collect(fake, asked(id, regex('[ab]{3}'), { sampling: { ...sampling, seed: id } })),
    )
    for (const answer of answers) {
      expect((await answer.done).finishReason).toBe(FinishReason.STOP)
      expect(textOf(answer.tokens.slice(0, -1))).toBe('aaa')
    }
  })

  it('goes on behind what was replayed', async () => {
    const fake = engineWith()
    const prompt = [7, 8, 9, ...tinyTokens('per')]
    const answer = collect(fake, asked(1, choice('yes', 'no', 'perhaps'), { prompt, replayedTokens: 3 }))
    await answer.done
    expect(textOf(answer.tokens)).toBe('haps')
  })

  it('survives preemption', async () => {
    const fake = engineWith(undefined, { blocks: 24, limits: { maxNumSeqs: 6 } })
    const kind = regex('([a-z]{5},)*end')
    const answers = Array.from({ length: 6 }, (_, id) => collect(fake, asked(id, kind, { maxTokens: 30 })))
    for (const answer of answers) {
      const { finishReason } = await answer.done
      expect([FinishReason.STOP, FinishReason.LENGTH]).toContain(finishReason)
      expect(textOf(answer.tokens)).toMatch(/^([a-z]{5},)*(end|[a-z]{0,5})$/)
    }
    expect(fake.device.counters.preemptions).toBeGreaterThan(0)
  })

  it('is cut by max_tokens like any other', async () => {
    const fake = engineWith()
    const schema = {
      type: 'object',
      properties: { name: { type: 'string', pattern: '^[a-z]{30,32}$' } },
      required: ['name'],
    }
    const kind = { $case: 'jsonSchema', jsonSchema: JSON.stringify(schema) } as const
    const answer = collect(fake, asked(1, kind, { maxTokens: 12 }))
    expect((await answer.done).finishReason).toBe(FinishReason.LENGTH)
    expect(textOf(answer.tokens)).toMatch(/^\{"name": "/)
    const whole = collect(fake, asked(2, kind, { maxTokens: 50 }))
    await whole.done
    expect(accepts(tinyKeeper(kind), textOf(whole.tokens))).toBe(true)
  })
})

describe('a grammar that fails', () => {
  it.each([
    ['is none', regex('(a'), /the pattern "\(a"/],
    ['is not kept', regex('(?=a)b'), /not kept/],
    ['never ends', { $case: 'ebnf', ebnf: 'root ::= "a" root' } as const, /nothing ends it/],
    ['is of no kind', undefined, /no known kind/],
  ])('because it %s ends the request, and nothing else', async (_, kind, message) => {
    const fake = engineWith()
    const other = collect(fake, asked(1, choice('yes')))
    const { finishReason, error } = await collect(fake, asked(2, kind)).done
    expect(finishReason).toBe(FinishReason.REJECTED)
    expect(error).toMatchObject({ code: 'invalid_request', message: expect.stringMatching(message) as string })
    expect((await other.done).finishReason).toBe(FinishReason.STOP)
  })

  it('costs no thread', async () => {
    const { fake, homes } = engineWithOwnHomes()
    for (const pattern of ['(a', '(?=a)b', '(a']) {
      expect((await collect(fake, asked(1, regex(pattern))).done).finishReason).toBe(FinishReason.REJECTED)
    }
    expect((await collect(fake, asked(2, choice('yes'))).done).finishReason).toBe(FinishReason.STOP)
    expect(homes).toHaveLength(1)
  })

  it('because it takes too long ends the request; the next one of that grammar begins anew', async () => {
    let limitMs = 0
    const impatient = new Grammars((vocabulary) => new GrammarHome(vocabulary, { compileMs: limitMs, masksMs: 5000 }))
    const fake = engineWith(new GrammarDesk(() => tinyVocabulary, impatient))
    const { finishReason, error } = await collect(fake, asked(1, choice('yes'))).done
    expect(finishReason).toBe(FinishReason.REJECTED)
    expect(error?.message).toBe('the grammar took more than 0 ms')
    expect(impatient.size).toBe(0)
    limitMs = 20_000
    expect((await collect(fake, asked(2, choice('yes'))).done).finishReason).toBe(FinishReason.STOP)
  })

  it('in the middle of answers ends all of them', async () => {
    const { fake, homes } = engineWithOwnHomes()
    const kind = regex('[ab]{50}')
    const answers = Array.from({ length: 3 }, (_, id) => collect(fake, asked(id, kind, { maxTokens: 55 })))
    while (answers.some(({ tokens }) => tokens.length < 3)) await new Promise(setImmediate)
    homes[0]?.close()
    for (const answer of answers) {
      const { finishReason, error } = await answer.done
      expect(finishReason).toBe(FinishReason.REJECTED)
      expect(error?.code).toBe('invalid_request')
    }
    expect((await collect(fake, asked(9, kind, { maxTokens: 55 })).done).finishReason).toBe(FinishReason.STOP)
    expect(homes).toHaveLength(2)
  })

  it('because the replayed text is not of it ends the request', async () => {
    const fake = engineWith()
    const prompt = [7, ...tinyTokens('x')]
    const { finishReason, error } = await collect(fake, asked(1, choice('yes'), { prompt, replayedTokens: 1 })).done
    expect(finishReason).toBe(FinishReason.REJECTED)
    expect(error?.message).toMatch(/not one that its grammar allows/)
  })
})

describe('a request whose grammar is being compiled', () => {
  it('can be cancelled', async () => {
    const fake = engineWith()
    const answer = collect(fake, asked(1, regex('cancelled')))
    const [sequence] = fake.device.residents[0]?.scheduler.waiting ?? []
    if (!sequence) throw new Error('it does not wait')
    fake.engine.cancel(sequence)
    expect((await answer.done).finishReason).toBe(FinishReason.CANCELLED)
  })

  it('is ended when the engine stops', async () => {
    const fake = engineWith(new GrammarDesk(() => tinyVocabulary))
    const answer = collect(fake, asked(1, choice('yes')))
    await fake.engine.stop(FinishReason.ERROR, { code: 'shutting_down', message: 'stop', retryAfterMs: 0 })
    expect((await answer.done).error?.code).toBe('shutting_down')
  })

  it('keeps nobody else waiting', async () => {
    const fake = engineWith(new GrammarDesk(() => tinyVocabulary))
    const bound = collect(fake, asked(1, choice('yes')))
    const free = collect(fake, submitOf(2, [1], { maxTokens: 3 }))
    await free.done
    expect(bound.tokens).toEqual([])
    await bound.done
  })
})

it('is refused by an engine that serves none', async () => {
  const fake = start()
  const { finishReason, error } = await collect(fake, asked(1, choice('yes'))).done
  expect(finishReason).toBe(FinishReason.REJECTED)
  expect(error?.code).toBe('invalid_request')
})
