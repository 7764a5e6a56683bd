import { array, assert, constantFrom, property, string } from 'fast-check'
import { describe, expect, test } from 'vitest'
import { StreamOutput } from '../../gateway/text/output.js'
import { StopMatcher } from '../../gateway/text/stop-matcher.js'
import type { Detokenizer } from '../../gateway/text/types.js'

/** The definition, read off the whole text: the first end of any stop string, there the longest. */
function naiveStop(text: string, stops: readonly string[]): number | undefined {
  for (let end = 1; end <= text.length; end++) {
    const before = text.slice(0, end)
    const found = stops.filter((stop) => stop !== '' && before.endsWith(stop))
    if (found.length > 0) return end - Math.max(...found.map((stop) => stop.length))
  }
  return undefined
}

/** Each id is a text of its own. */
function scripted(deltas: readonly string[], flush = ''): Detokenizer {
  return { push: (id) => deltas[id] ?? '', flush: () => flush }
}

interface Result {
  text: string
  tokens: number
  stopped: boolean
  chunks: { text: string; tokens: number }[]
}

function run(deltas: readonly string[], stop: readonly string[], minTokens = 0, flush = ''): Result {
  const output = new StreamOutput(scripted(deltas, flush), { stop, minTokens, skipSpecial: true })
  const result: Result = { text: '', tokens: 0, stopped: false, chunks: [] }
  const take = (chunk: { text: string; tokens: number; stopped: boolean }) => {
    result.chunks.push({ text: chunk.text, tokens: chunk.tokens })
    result.text += chunk.text
    result.tokens += chunk.tokens
    result.stopped ||= chunk.stopped
  }
  for (const id of deltas.keys()) {
    if (!result.stopped) take(output.push(id))
  }
  if (!result.stopped) take(output.finish())
  return result
}

const letters = string({ unit: constantFrom('a', 'b', '😀', '😁'), maxLength: 6 })
const deltas = array(letters, { maxLength: 12 })
const stops = array(letters, { maxLength: 4 })

describe('stop strings', () => {
  test('any cut gives what the whole text gives', () => {
    assert(
      property(deltas, stops, letters, (pieces, stop, flush) => {
        const whole = pieces.join('') + flush
        const start = naiveStop(whole, stop)
        const result = run(pieces, stop, 0, flush)
        expect(result.text).toBe(start === undefined ? whole : whole.slice(0, start))
        expect(result.stopped).toBe(start !== undefined)
      }),
      { numRuns: 1000 },
    )
  })

  test('nothing is held back that cannot become a stop string', () => {
    assert(
      property(deltas, stops, (pieces, stop) => {
        const output = new StreamOutput(scripted(pieces), { stop, minTokens: 0, skipSpecial: true })
        let given = ''
        let whole = ''
        for (const [id, piece] of pieces.entries()) {
          const chunk = output.push(id)
          given += chunk.text
          whole += piece
          if (chunk.stopped) return
          const held = whole.slice(given.length)
          expect(held === '' || stop.some((one) => one.startsWith(held) && one !== held)).toBe(true)
        }
      }),
      { numRuns: 1000 },
    )
  })

  test('tokens are given out with the text that they complete', () => {
    assert(
      property(deltas, stops, (pieces, stop) => {
        const result = run(pieces, stop)
        let text = ''
        let tokens = 0
        for (const chunk of result.chunks.slice(0, -1)) {
          text += chunk.text
          tokens += chunk.tokens
          // What is out covers the tokens that are out, and the next token with text is not yet covered.
          expect(pieces.slice(0, tokens).join('').length).toBeLessThanOrEqual(text.length)
          expect(chunk.text !== '' || chunk.tokens === 0).toBe(true)
          const next = pieces.slice(tokens).findIndex((piece) => piece !== '')
          expect(next < 0 || pieces.slice(0, tokens + next + 1).join('').length > text.length).toBe(true)
        }
        expect(result.stopped || result.tokens === pieces.length).toBe(true)
      }),
      { numRuns: 1000 },
    )
  })

  test.each([
    { name: 'across tokens', pieces: ['on', 'e E', 'N', 'D two'], stop: ['END'], text: 'one ', tokens: 2 },
    { name: 'the one complete first', pieces: ['abcd'], stop: ['abcd', 'bc'], text: 'a', tokens: 1 },
    { name: 'the longest of those', pieces: ['xabc'], stop: ['c', 'abc'], text: 'x', tokens: 1 },
    { name: 'overlapping itself', pieces: ['aa', 'aab'], stop: ['aaab'], text: 'a', tokens: 1 },
    { name: 'at the very start', pieces: ['\n\n', 'x'], stop: ['\n'], text: '', tokens: 0 },
    { name: 'parts of a character before it', pieces: ['a', '', 'é', 'STOP'], stop: ['STOP'], text: 'aé', tokens: 3 },
    { name: 'a lone surrogate never cuts a pair', pieces: ['😀x'], stop: ['\ude00'], text: '😀x', tokens: 1 },
    { name: 'an empty stop string', pieces: ['ab'], stop: [''], text: 'ab', tokens: 1 },
  ])('$name', ({ pieces, stop, text, tokens }) => {
    expect(run(pieces, stop)).toMatchObject({ text, tokens })
  })

  test('the first minTokens tokens are not searched, nor counted towards a match', () => {
    expect(run(['END', 'E', 'ND', 'END', 'x'], ['END'], 2)).toMatchObject({ text: 'ENDEND', stopped: true })
    expect(run(['EN', 'D', '.'], ['END'], 1)).toMatchObject({ text: 'END.', stopped: false })
  })

  test('a part of a character waits for the rest with its token', () => {
    const output = new StreamOutput(scripted(['a', '', 'é', '']), { stop: ['az'], minTokens: 0, skipSpecial: true })
    expect([0, 1, 2, 3].map((id) => output.push(id))).toEqual([
      { text: '', tokens: 0, stopped: false },
      { text: '', tokens: 0, stopped: false },
      { text: 'aé', tokens: 3, stopped: false },
      { text: '', tokens: 0, stopped: false },
    ])
    expect(output.finish()).toEqual({ text: '', tokens: 1, stopped: false })
    expect(output.push(0)).toEqual({ text: '', tokens: 0, stopped: false })
    expect(output.finish()).toEqual({ text: '', tokens: 0, stopped: false })
  })

  test('reading is linear: a stop string that nearly matches everywhere costs no more', () => {
    const matcher = new StopMatcher([`${'a'.repeat(500)}b`, `${'a'.repeat(499)}c`])
    expect(matcher.push('a'.repeat(300_000))).toBeUndefined()
    expect(matcher.held).toBe(500)
    expect(matcher.push('b')).toEqual({ start: 299_500, stop: `${'a'.repeat(500)}b` })
  })
})
