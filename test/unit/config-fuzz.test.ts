import { readFileSync } from 'node:fs'
import { array, assert, constantFrom, integer, property, record, string } from 'fast-check'
import { expect, test } from 'vitest'
import { ConfigError, parseConfig } from '../../engine/config/index.js'

const shipped = readFileSync(new URL('../../models.yaml', import.meta.url), 'utf8')
// Comments make most edits harmless: without them more edits hit something.
const bare = shipped
  .split('\n')
  .map((line) => line.replace(/#.*$/, '').trimEnd())
  .filter((line) => line !== '')
  .join('\n')

const scrap = constantFrom(
  '',
  ' ',
  '\n',
  ':',
  '- ',
  '[',
  '}',
  '"',
  "'",
  '|',
  '&a',
  '*a',
  '!!x',
  '#',
  '\t',
  '0',
  '.nan',
  'null',
  '~',
  '<<: ',
)
const edit = record({ at: integer({ min: 0, max: bare.length }), drop: integer({ min: 0, max: 12 }), put: scrap })

/** How a text was taken; "wrong" for a fault without a place in the text or without a reason. */
function outcome(text: string): 'read' | 'refused' | 'wrong' {
  try {
    parseConfig(text, 'models.yaml')
    return 'read'
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    const lines = text.split('\n').length
    const placed = error.problems.every(
      ({ line, column, message }) => line >= 1 && line <= lines && column >= 1 && message !== '',
    )
    return placed && error.problems.length > 0 ? 'refused' : 'wrong'
  }
}

test('an edited file is read or refused with a place and a reason, nothing else', () => {
  const outcomes = new Set<string>()
  assert(
    property(array(edit, { minLength: 1, maxLength: 4 }), (edits) => {
      let text = bare
      for (const { at, drop, put } of edits) text = text.slice(0, at) + put + text.slice(at + drop)
      outcomes.add(outcome(text))
    }),
    { numRuns: 200 },
  )
  expect(outcomes).toEqual(new Set(['read', 'refused']))
})

test('so is any text', () => {
  assert(
    property(string({ unit: 'binary', maxLength: 200 }), (text) => {
      expect(outcome(text)).toBe('refused')
    }),
    { numRuns: 200 },
  )
})
