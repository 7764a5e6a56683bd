import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { GrammarError } from '../../engine/grammar/grammar-error.js'
import { grammarRules } from '../../engine/grammar/grammar-rules.js'
import { GrammarKeeper, reasonOf } from '../../engine/grammar/keeper.js'
import { Matcher, type Place } from '../../engine/grammar/matcher.js'
import { buildNetwork, type Network } from '../../engine/grammar/network.js'
import { setBit, TokenTrie } from '../../engine/grammar/token-trie.js'
import { allowedTokens } from '../support/grammar-walk.js'
import { randomEbnf, randomPattern, randomVocabulary } from '../support/random-grammars.js'

const kind = fc.oneof(
  randomPattern.map((regex): Grammar['kind'] => ({ $case: 'regex', regex })),
  randomEbnf.map((ebnf): Grammar['kind'] => ({ $case: 'ebnf', ebnf })),
)
const draws = fc.infiniteStream(fc.nat(999_999))

/** Undefined where there is no such grammar. */
function orNone<T>(make: () => T): T | undefined {
  try {
    return make()
  } catch (error) {
    if (!(error instanceof GrammarError)) throw error
    return undefined
  }
}

/** Random grammars may be ambiguous beyond the bound; nothing is asked of those. */
function unlessOpen(run: () => void): void {
  try {
    run()
  } catch (error) {
    if (!(error instanceof GrammarError && error.message.includes('are open at once'))) throw error
  }
}

const networkOf = (wanted: Grammar['kind']): Network | undefined =>
  orNone(() => buildNetwork(grammarRules({ kind: wanted })))

type Vocabulary = readonly (Uint8Array | undefined)[]

/** Ids that go on from a place, one after another. */
function naive(vocabulary: Vocabulary, matcher: Matcher, place: Place): number[] {
  return [...vocabulary.keys()].filter((id) => {
    const bytes = vocabulary[id]
    return bytes !== undefined && bytes.length > 0 && matcher.read(place, bytes) !== null
  })
}

/** Goes by random tokens as far as there are some, and says how far. */
function walk(network: Network, vocabulary: Vocabulary, draw: Iterator<number>, places: number): number {
  const [matcher, other, forgetful] = [new Matcher(network), new Matcher(network), new Matcher(network, places)]
  const trie = new TokenTrie(vocabulary)
  let at: (Place | null)[] = [matcher.begin, other.begin, forgetful.begin]
  for (let length = 0; ; length++) {
    const [place, twin, forgotten] = at
    if (!place || !twin || !forgotten) throw new Error('a token that is allowed leads nowhere')
    const ids = allowedTokens(trie.mask(matcher, place))
    expect(ids).toEqual(naive(vocabulary, other, twin))
    expect(allowedTokens(trie.mask(forgetful, forgotten))).toEqual(ids)
    expect([twin.ends, forgotten.ends]).toEqual([place.ends, place.ends])
    if (ids.length === 0 || length === 12) return length
    const next = trie.bytesOf(ids[draw.next().value % ids.length] ?? -1)
    at = [matcher.read(place, next), other.read(twin, next), forgetful.read(forgetful.current(forgotten), next)]
  }
}

describe('a mask', () => {
  it('holds the tokens that may come, also when places are forgotten all the time', () => {
    let walked = 0
    fc.assert(
      fc.property(kind, randomVocabulary, draws, fc.integer({ min: 1, max: 5 }), (wanted, vocabulary, draw, places) => {
        const network = networkOf(wanted)
        if (network) unlessOpen(() => (walked += walk(network, vocabulary, draw, places)))
      }),
      { numRuns: 1000 },
    )
    expect(walked).toBeGreaterThan(1000)
  })

  it('has bits for exactly the tokens of the vocabulary', () => {
    const one = new TextEncoder().encode('a')
    const network = networkOf({ $case: 'regex', regex: '[^b]*' })
    if (!network) throw new Error('no network')
    for (const size of [0, 1, 31, 32, 33, 64, 65]) {
      const trie = new TokenTrie(Array.from({ length: size }, () => one))
      const matcher = new Matcher(network)
      expect(trie.words).toBe(Math.ceil(size / 32))
      expect(allowedTokens(trie.mask(matcher, matcher.begin))).toEqual(Array.from({ length: size }, (_, id) => id))
    }
  })

  it('never holds tokens longer than any should be, nor such without bytes', () => {
    const trie = new TokenTrie([Buffer.alloc(1025, 'a'), Buffer.alloc(1024, 'a'), new Uint8Array(), undefined])
    const network = networkOf({ $case: 'regex', regex: 'a*' })
    if (!network) throw new Error('no network')
    const matcher = new Matcher(network)
    expect(allowedTokens(trie.mask(matcher, matcher.begin))).toEqual([1])
  })

  it('has single bits that are set and taken', () => {
    const mask = new Uint32Array(2)
    for (const token of [0, 31, 32, 63]) setBit(mask, token)
    setBit(mask, 31, false)
    setBit(mask, 30, false)
    expect(allowedTokens(mask)).toEqual([0, 32, 63])
  })
})

describe('a keeper', () => {
  /** Answers some of four sequences at a time, by keepers of a grammar. */
  const interleave = (
    together: GrammarKeeper,
    alone: () => GrammarKeeper,
    words: number,
    draw: Iterator<number>,
  ): void => {
    const texts = new Map<number, number[]>([10, 20, 30, 40].map((sequence) => [sequence, []]))
    /** Tokens that its keeper has not seen. */
    const pending = new Map<number, number[]>()
    for (let step = 0; step < 8; step++) {
      // Some of them wait, so that several tokens come at once.
      const due = [...texts.keys()].filter(() => draw.next().value % 3 > 0)
      const { bits, ends, faults } = together.answer(
        due.map((sequence) => ({ sequence, tokens: Int32Array.from(pending.get(sequence) ?? []) })),
      )
      for (const [index, sequence] of due.entries()) {
        const own = texts.get(sequence) ?? []
        const expected = alone().answer([{ sequence: 1, tokens: Int32Array.from(own) }])
        const mask = bits.slice(index * words, (index + 1) * words)
        const fault = faults.find((one) => one.index === index)
        expect([mask, ends[index], fault?.reason]).toEqual([
          expected.bits,
          expected.ends[0],
          expected.faults[0]?.reason,
        ])
        const ids = allowedTokens(mask)
        const next = Array.from(
          { length: 1 + (draw.next().value % 3) },
          () => ids[draw.next().value % ids.length] ?? -1,
        )
        // One that has ended, or was led out of the grammar, makes way for another of its number.
        const isOver =
          ids.length === 0 ||
          alone().answer([{ sequence: 1, tokens: Int32Array.from([...own, ...next]) }]).faults.length > 0
        if (isOver) together.forget(sequence)
        texts.set(sequence, isOver ? [] : [...own, ...next])
        pending.set(sequence, isOver ? [] : next)
      }
    }
  }

  it('answers many sequences as each of them alone, in pieces or in one', () => {
    let kept = 0
    fc.assert(
      fc.property(kind, randomVocabulary, draws, (wanted, vocabulary, draw) => {
        const trie = new TokenTrie(vocabulary)
        const alone = (): GrammarKeeper => new GrammarKeeper({ kind: wanted }, trie)
        const together = orNone(alone)
        if (!together) return
        unlessOpen(() => interleave(together, alone, trie.words, draw))
        kept++
      }),
      { numRuns: 150 },
    )
    expect(kept).toBeGreaterThan(50)
  })

  const vocabulary = ['a', 'b', 'ab', undefined, '', 'c'].map((text) => (text === undefined ? text : Buffer.from(text)))
  const trie = new TokenTrie(vocabulary)
  const ab = (): GrammarKeeper => new GrammarKeeper({ kind: { $case: 'regex', regex: '(ab){1,2}' } }, trie)
  const allowed = (keeper: GrammarKeeper, sequence: number, ...tokens: number[]): number[] | string => {
    const { bits, faults } = keeper.answer([{ sequence, tokens: Int32Array.from(tokens) }])
    return faults[0]?.reason ?? allowedTokens(bits)
  }
  const NOT_ALLOWED = 'the text is not one that its grammar allows'

  it('knows where each sequence stands until it is forgotten', () => {
    const keeper = ab()
    expect(allowed(keeper, 1)).toEqual([0, 2])
    expect(allowed(keeper, 1, 0)).toEqual([1])
    expect(allowed(keeper, 2, 2, 0)).toEqual([1])
    expect(allowed(keeper, 1)).toEqual([1])
    expect(allowed(keeper, 1, 1)).toEqual([0, 2])
    expect(allowed(keeper, 2, 1)).toEqual([])
    keeper.forget(1)
    expect(allowed(keeper, 1)).toEqual([0, 2])
    expect(allowed(keeper, 2)).toEqual([])
  })

  it.each([
    ['that the grammar does not allow', 1],
    ['that is for control', 3],
    ['without bytes', 4],
    ['that no vocabulary has', 99],
    ['below all', -1],
  ])('faults a token %s, and no other sequence', (_, token) => {
    const keeper = ab()
    const { bits, ends, faults } = keeper.answer([
      { sequence: 1, tokens: Int32Array.of(2) },
      { sequence: 2, tokens: Int32Array.of(0, 1, token) },
      { sequence: 3, tokens: Int32Array.of() },
    ])
    expect(faults).toEqual([{ index: 1, reason: NOT_ALLOWED }])
    expect(ends).toEqual([true, false, false])
    expect([...bits]).toEqual([0b101, 0, 0b101])
    // It stands where it stood before.
    expect(allowed(keeper, 2, 0)).toEqual([1])
  })

  it('says where no token goes on', () => {
    const keeper = new GrammarKeeper({ kind: { $case: 'regex', regex: 'a(x|)' } }, trie)
    expect(allowed(keeper, 1, 0)).toEqual([])
    const stuck = new GrammarKeeper({ kind: { $case: 'regex', regex: 'ax' } }, trie)
    expect(allowed(stuck, 1, 0)).toBe('no token of the model goes on as the grammar asks')
  })

  it.each([
    [undefined, 'the grammar is of no known kind'],
    [{ $case: 'choice', choice: { texts: [] } }, 'there is nothing to choose from'],
    [{ $case: 'jsonSchema', jsonSchema: '' }, 'the grammar is empty'],
    [{ $case: 'jsonSchema', jsonSchema: '{' }, 'the schema is not JSON: '],
    [{ $case: 'regex', regex: 'a'.repeat(2 ** 20 + 1) }, 'the grammar has more than 1048576 characters'],
  ] as const)('refuses %j', (none, reason) => {
    expect(() => new GrammarKeeper({ kind: none as Grammar['kind'] }, trie)).toThrow(reason)
  })

  it('chooses among texts, also where they begin alike', () => {
    const texts = Array.from({ length: 2000 }, (_, i) => 'a'.repeat(i % 50) + 'bc'.repeat(Math.floor(i / 50)))
    const keeper = new GrammarKeeper({ kind: { $case: 'choice', choice: { texts } } }, trie)
    const { ends } = keeper.answer(
      texts.map((text, sequence) => ({
        sequence,
        tokens: Int32Array.from(text, (letter) => 'ab...c'.indexOf(letter)),
      })),
    )
    expect(ends.every(Boolean)).toBe(true)
    expect(allowed(keeper, -1, 1, 5, 0)).toBe(NOT_ALLOWED)
  })

  it.each<[string, NonNullable<Grammar['kind']>]>([
    ['groups', { $case: 'regex', regex: '(?:'.repeat(200_000) + ')'.repeat(200_000) }],
    ['stars', { $case: 'ebnf', ebnf: `root ::= "a"${'*'.repeat(200_000)}` }],
    ['lists', { $case: 'jsonSchema', jsonSchema: `{"const": ${'['.repeat(200_000)}${']'.repeat(200_000)}}` }],
    ['characters', { $case: 'regex', regex: 'a'.repeat(500_000) }],
  ])('says that a grammar is too much: %s', (_, much) => {
    const error = thrownBy(() => new GrammarKeeper({ kind: much }, trie))
    expect(reasonOf(error)).toMatch(/too long, or nested too deeply|too large/)
  })
})

function thrownBy(run: () => unknown): unknown {
  try {
    run()
  } catch (error) {
    return error
  }
  return undefined
}
