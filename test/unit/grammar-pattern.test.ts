import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Matcher } from '../../engine/grammar/matcher.js'
import { buildNetwork } from '../../engine/grammar/network.js'
import { patternExpression } from '../../engine/grammar/pattern.js'
import { accepts, tinyKeeper } from '../support/grammar-walk.js'
import { randomPattern } from '../support/random-grammars.js'

const LETTERS = ['a', 'b', '1', '_', ' ', '\n', 'é', '\u2028', '😀', '-']
const SHORT = ['', ...LETTERS, ...LETTERS.flatMap((a) => LETTERS.map((b) => a + b))]

function matcherOf(pattern: string, alphabet?: Parameters<typeof patternExpression>[1]): (text: string) => boolean {
  const matcher = new Matcher(buildNetwork(new Map([['root', patternExpression(pattern, alphabet)]])))
  return (text) => matcher.read(matcher.begin, Buffer.from(text))?.ends === true
}

/** Where nothing matches there is no network. */
function orNothing(pattern: string): (text: string) => boolean {
  try {
    return matcherOf(pattern)
  } catch (error) {
    if (/nothing ends it/.test(String(error))) return () => false
    throw error
  }
}

describe('a regular expression', () => {
  it('matches what RegExp matches, as a whole', () => {
    const texts = fc.array(
      fc.array(fc.constantFrom(...LETTERS), { maxLength: 7 }).map((all) => all.join('')),
      {
        maxLength: 20,
      },
    )
    fc.assert(
      fc.property(randomPattern, texts, (pattern, more) => {
        const own = orNothing(pattern)
        const theirs = new RegExp(`^(?:${pattern})$`, 'u')
        expect([...SHORT, ...more].filter((text) => own(text) !== theirs.test(text))).toEqual([])
      }),
      { numRuns: 700 },
    )
  })

  it.each([
    ['^abc$', ['abc'], ['ab', 'abcd', 'xabc', '']],
    ['(^a|^b$)', ['a', 'b'], ['ab']],
    ['^(?:a|b$)$', ['a', 'b'], ['']],
    ['^$', [''], ['a']],
    ['$^', [''], ['a']],
    ['', [''], ['a']],
    ['a|', ['', 'a'], ['b']],
    ['(?<year>\\d{4})-(?:0[1-9]|1[0-2])', ['1999-12', '0000-01'], ['1999-13', '199-01']],
    ['a{2,}?', ['aa', 'aaaaa'], ['a']],
    ['(?:ab?){2}', ['aa', 'abab', 'aab'], ['a', 'aaa']],
    ['(?:a*)*b', ['b', 'aaaab'], ['a']],
    ['(?:a{10000}){10000}|b', ['b'], ['a']],
    ['[^]', ['\n', '😀'], ['', 'ab']],
    ['[]|b', ['b'], ['']],
    ['[😀-😂]+', ['😀😁😂'], ['😃', '\ufffd']],
    ['.', ['😀', 'é'], ['\n', '\r', '\u2028', '\u2029', 'aa']],
    ['[\\d_\\-é]+', ['1_-é'], ['e', 'a']],
    ['\\u{1F600}\\x41\\u00e9\\cJ\\0', ['😀Aé\n\0'], ['😀Aé\n']],
    ['\\ud83d\\ude00', ['😀'], ['\ufffd']],
    ['[\\u{10000}-\\u{10ffff}]', ['😀'], ['\uffff']],
    ['\\/\\.\\^\\$\\[\\]\\{\\}\\(\\)\\*\\+\\?\\|\\\\', ['/.^$[]{}()*+?|\\'], ['']],
  ])('%s', (pattern, yes, no) => {
    const own = matcherOf(pattern)
    expect(yes.filter((text) => !own(text))).toEqual([])
    expect(no.filter((text) => own(text))).toEqual([])
  })

  it.each([
    ['\\-\\@\\ \\"\\\'\\#\\&\\~\\_\\:\\<\\>\\=\\!\\%\\,\\;\\`', '-@ "\'#&~_:<>=!%,;`'],
    ['a\\-😀{2}', 'a-😀😀'],
    ['\\😀+', '😀😀'],
    ['[\\@\\-😀]{3}', '@-😀'],
    ['[+\\--]+', '+-'],
    ['{"a": \\[1, 2]}', '{"a": [1, 2]}'],
    ['{x}\\-', '{x}-'],
    ['[{}[]{3}', '{}['],
    ['[^\\]]]', 'a]'],
    ['\\\\\\-', '\\-'],
    ['a{2}{', 'aa{'],
  ])('takes the needless or missing escapes of %s', (pattern, text) => {
    expect(matcherOf(pattern)(text)).toBe(true)
    expect(matcherOf(pattern)(`${text}x`)).toBe(false)
  })

  it.each([
    ['a(?=b)', '(?=b) is not kept'],
    ['(?!a)b', '(?!a) is not kept'],
    ['(?<=a)b', '(?<=a) is not kept'],
    ['(?<!a)b', '(?<!a) is not kept'],
    ['(a)\\1', '\\1 is not kept'],
    ['(?<x>a)\\k<x>', '\\k<x> is not kept'],
    ['\\bword\\b', '\\b is not kept'],
    ['a\\B', '\\B is not kept'],
    ['\\p{L}', '\\p{L} is not kept'],
    ['[\\P{Lu}]', '\\P{Lu} is not kept'],
    ['a^b', 'an anchor in the middle is not kept'],
    ['a$b', 'an anchor in the middle is not kept'],
    ['(a$|b)c', 'an anchor in the middle is not kept'],
    ['c(^a|b)', 'an anchor in the middle is not kept'],
    ['(^a)+', 'an anchor in the middle is not kept'],
    ['(a$){2}', 'an anchor in the middle is not kept'],
    ['a{10001}', 'more than 10000 repeats'],
    ['a{0,10001}', 'more than 10000 repeats'],
    ['a{10001,}', 'more than 10000 repeats'],
    ['(a', 'Unterminated group'],
    ['a)', "Unmatched ')'"],
    ['[a', 'Unterminated character class'],
    ['[b-a]', 'Range out of order in character class'],
    ['*a', 'Nothing to repeat'],
    ['a**', 'Nothing to repeat'],
    ['a{2,1}', 'numbers out of order in {} quantifier'],
    ['\\', 'Invalid escape'],
    ['a{,5}', 'Incomplete quantifier'],
    ['\\p{Nowhere}', 'Invalid property name'],
    ['\\A\\w+\\Z', 'Invalid escape'],
    ['\\1', 'Invalid escape'],
    ['\\u{110000}', 'Invalid unicode escape'],
    ['\\k<x>', 'Invalid named capture referenced'],
    ['(?<x>a)(?<x>b)', 'Duplicate capture group name'],
    ['(?i)a', 'Invalid group'],
  ])('refuses %s', (pattern, reason) => {
    expect(() => patternExpression(pattern)).toThrow(`the pattern ${JSON.stringify(pattern)}: ${reason}`)
  })

  it('shows no more than the beginning of a long one', () => {
    expect(() => patternExpression(`${'a'.repeat(500)}(`)).toThrow(
      `the pattern "${'a'.repeat(100)}": Unterminated group`,
    )
  })

  it.each(['.*', '[^a]*', '\\W*', '\\S*', '[\\s\\S]*', '["\\\\\\x00-\\x1f]?'])(
    '%s has none but of the alphabet',
    (pattern) => {
      const own = matcherOf(pattern, [
        [0x20, 0x21],
        [0x23, 0x5b],
        [0x5d, 0x10ffff],
      ])
      expect(own('')).toBe(true)
      const never = Array.from({ length: 32 }, (_, code) => String.fromCodePoint(code)).concat('"', '\\')
      expect(never.filter((text) => own(text))).toEqual([])
      expect(own('é😀\u2027')).toBe(pattern.endsWith('*'))
    },
  )

  it('builds long ones in no time', () => {
    const began = performance.now()
    const keeper = tinyKeeper({ $case: 'regex', regex: 'ab'.repeat(20_000) })
    expect(accepts(keeper, 'ab'.repeat(20_000))).toBe(true)
    expect(performance.now() - began).toBeLessThan(6000)
  })
})
