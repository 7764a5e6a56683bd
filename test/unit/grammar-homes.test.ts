import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { GrammarError } from '../../engine/grammar/grammar-error.js'
import { Grammars, GrammarsBusyError, type Home } from '../../engine/grammar/grammars.js'
import { Sequence } from '../../engine/scheduler/sequence.js'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { submitOf } from '../support/fake-engine.js'

const VOCABULARY = { tokenizer: new Uint8Array(), vocabSize: 64 }
const OTHER = { tokenizer: new Uint8Array(), vocabSize: 32 }

/** Says yes to everything but a grammar "bad". */
class FakeHome implements Home {
  bytes = 100
  dead = false
  readonly compiled: string[] = []
  readonly forgotten: number[] = []

  compile({ kind }: Grammar): Promise<void> {
    const text = kind?.$case === 'ebnf' ? kind.ebnf : ''
    this.compiled.push(text)
    return text === 'bad' ? Promise.reject(new GrammarError('bad')) : Promise.resolve()
  }

  masks(): Promise<never> {
    return Promise.reject(new Error('nobody asks'))
  }

  forget(arrival: number): void {
    this.forgotten.push(arrival)
  }

  close(): void {
    this.dead = true
  }
}

const homes: FakeHome[] = []
let grammars: Grammars
let arrivals = 0

beforeEach(() => {
  vi.useFakeTimers()
  homes.length = 0
  grammars = new Grammars(() => {
    const home = new FakeHome()
    homes.push(home)
    return home
  })
})
afterEach(() => {
  grammars.close()
  vi.useRealTimers()
})

const open = (): FakeHome[] => homes.filter(({ dead }) => !dead)
const grammar = (ebnf: string): Grammar => ({ kind: { $case: 'ebnf', ebnf } })
const owner = { blockedSince: undefined, deliver: () => {} }

function sequence(): Sequence {
  const arrival = arrivals++
  return new Sequence(submitOf(arrival, [1]), owner, arrival, 0, 64)
}

/** Asks for a grammar for a new sequence; settled says how that ended so far. */
function ask(ebnf: string, vocabulary = VOCABULARY): { of: Sequence; settled: () => unknown; done: Promise<unknown> } {
  const of = sequence()
  let outcome: unknown
  const done = grammars.prepare(of, grammar(ebnf), vocabulary).then(
    () => (outcome = 'ready'),
    (error: unknown) => (outcome = error),
  )
  return { of, settled: () => outcome, done }
}

function end(of: Sequence): void {
  of.state = 'finished'
  grammars.release(of)
}

describe('the homes of grammars', () => {
  it('are shared by sequences of one grammar and one vocabulary', async () => {
    const asked = [ask('a'), ask('a'), ask('a', OTHER), ask('b')]
    await Promise.all(asked.map(({ done }) => done))
    expect(homes.map(({ compiled }) => compiled)).toEqual([['a'], ['a'], ['b']])
    expect(asked[0]?.of.grammar).toMatchObject({ home: homes[0], words: 2, accepted: 0 })
    expect(asked[1]?.of.grammar?.home).toBe(homes[0])
    expect(asked[2]?.of.grammar?.words).toBe(1)
    expect(grammars.bytes).toBe(300)
  })

  it('are told of the ends of their sequences, and go on with another grammar of the vocabulary', async () => {
    const first = ask('a')
    await first.done
    end(first.of)
    expect(homes[0]?.forgotten).toEqual([first.of.arrival])
    await ask('b').done
    await ask('c', OTHER).done
    expect(homes.map(({ compiled }) => compiled)).toEqual([['a', 'b'], ['c']])
  })

  it('keep a grammar without sequences for a minute', async () => {
    const first = ask('a')
    await first.done
    end(first.of)
    vi.advanceTimersByTime(59_000)
    const second = ask('a')
    await second.done
    expect(homes[0]?.compiled).toEqual(['a'])
    vi.advanceTimersByTime(120_000)
    expect(open()).toHaveLength(1)
    end(second.of)
    vi.advanceTimersByTime(60_000)
    expect(open()).toHaveLength(0)
    expect(grammars.size).toBe(0)
  })

  it('are eight at most: the ninth grammar waits for one, in order', async () => {
    const asked = Array.from({ length: 8 }, (_, i) => ask(`g${i}`))
    await Promise.all(asked.map(({ done }) => done))
    const [ninth, tenth, known] = [ask('g8'), ask('g9'), ask('g3')]
    await known.done
    await vi.advanceTimersByTimeAsync(1000)
    expect([ninth.settled(), tenth.settled(), known.settled()]).toEqual([undefined, undefined, 'ready'])
    end(asked[5]?.of ?? sequence())
    await ninth.done
    await vi.advanceTimersByTimeAsync(1000)
    expect([ninth.settled(), tenth.settled()]).toEqual(['ready', undefined])
    expect(homes[5]?.compiled).toEqual(['g5', 'g8'])
    end(asked[0]?.of ?? sequence())
    await tenth.done
    expect(tenth.settled()).toBe('ready')
    expect(homes).toHaveLength(8)
  })

  it('make way for another vocabulary', async () => {
    const asked = Array.from({ length: 8 }, (_, i) => ask(`g${i}`))
    await Promise.all(asked.map(({ done }) => done))
    end(asked[2]?.of ?? sequence())
    await ask('other', OTHER).done
    expect(homes[2]?.dead).toBe(true)
    expect(open()).toHaveLength(8)
  })

  it('are not waited for longer than half a minute, nor by who has ended', async () => {
    const asked = Array.from({ length: 8 }, (_, i) => ask(`g${i}`))
    await Promise.all(asked.map(({ done }) => done))
    const [waits, ended] = [ask('g8'), ask('g9')]
    end(ended.of)
    await vi.advanceTimersByTimeAsync(30_001)
    expect(waits.settled()).toBeInstanceOf(GrammarsBusyError)
    expect(ended.of.grammar).toBeUndefined()
    expect(homes).toHaveLength(8)
  })

  it('outlive a grammar that is refused', async () => {
    const [first, second] = [ask('bad'), ask('bad')]
    await Promise.all([first.done, second.done])
    for (const { of, settled } of [first, second]) {
      expect(settled()).toEqual(new GrammarError('bad'))
      end(of)
    }
    const again = ask('bad')
    await again.done
    end(again.of)
    await ask('good').done
    expect(homes.map(({ compiled }) => compiled)).toEqual([['bad', 'bad', 'good']])
  })

  it('that died are forgotten', async () => {
    const first = ask('a')
    await first.done
    const [home] = homes
    if (home) home.dead = true
    const second = ask('a')
    await second.done
    expect(second.of.grammar?.home).toBe(homes[1])
    end(first.of)
    expect(grammars.size).toBe(1)
  })

  it('are closed with all, and whoever waits is told', async () => {
    const asked = Array.from({ length: 9 }, (_, i) => ask(`g${i}`))
    await Promise.all(asked.slice(0, 8).map(({ done }) => done))
    grammars.close()
    await asked[8]?.done
    expect(asked[8]?.settled()).toEqual(new GrammarError('the engine is stopping'))
    expect(open()).toHaveLength(0)
  })
})
