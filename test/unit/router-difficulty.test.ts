import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { GenerateInput } from '../../gateway/request.js'
import { difficultyOf } from '../../gateway/router/difficulty.js'

const ask = (text: string, before = 0): GenerateInput => ({
  kind: 'chat',
  messages: [
    ...Array.from({ length: before }, (_, i) => ({
      role: i % 2 ? ('assistant' as const) : ('user' as const),
      content: 'Hi',
    })),
    { role: 'user', content: text },
  ],
})

describe('difficultyOf', () => {
  const plain = difficultyOf(ask('What is the capital of France?'))

  it('finds a short question easy', () => {
    expect(plain).toBeLessThan(0.1)
  })

  it.each([
    ['length', ask('What is the capital of France? '.repeat(300))],
    ['code', ask('for (const x of xs) { if (x > 0) { sum += f(x); } }')],
    ['numbers', ask('What is 1734 * 2891 + 12^3 - 55 % 7?')],
    ['another script', ask('日本の首都はどこですか。詳しく教えてください。')],
    ['depth', ask('And why?', 14)],
    [
      'tools',
      {
        kind: 'chat' as const,
        messages: [
          { role: 'tool' as const, content: '{}' },
          { role: 'user' as const, content: 'So?' },
        ],
      },
    ],
  ])('finds %s harder', (_, input) => {
    expect(difficultyOf(input)).toBeGreaterThan(plain + 0.05)
  })

  it('is a share, however the text looks, and looks at no more than a part of it', () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 300 }), fc.nat(40), (text, before) => {
        const value = difficultyOf(ask(text, before))
        expect(value).toBeGreaterThanOrEqual(0)
        expect(value).toBeLessThanOrEqual(1)
      }),
      { numRuns: 200 },
    )
    const padding = ' '.repeat(100_000)
    expect(difficultyOf(ask(`${padding}${'{'.repeat(1000)}${padding}`))).toBe(difficultyOf(ask(padding + padding)))
    expect(difficultyOf({ kind: 'tokens', tokens: Array.from({ length: 5000 }, () => 1) })).toBe(0.25)
  })
})
