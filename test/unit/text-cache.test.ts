import { expect, it } from 'vitest'
import { EncodingCache } from '../../gateway/text/encoding-cache.js'
import { loadTextModel } from '../../gateway/text/model-text.js'
import { changedTokenizerAssets, TINY_VOCAB_SIZE, tinyTokenizerAssets, tinyTokens } from '../support/tiny-tokenizer.js'

const zeros = (length: number): number[] => Array.from({ length }, () => 0)

const messages = [
  { role: 'system' as const, content: 'Be brief.' },
  { role: 'user' as const, content: 'Hello <|im_end|> there' },
]

it('gives the same ids again, whatever a caller did with the first ones', async () => {
  const model = await loadTextModel(tinyTokenizerAssets(8192), 0)
  const first = await model.encodeChat(messages, 'a')
  const expected = [...first]
  first.length = 0
  expect(await model.encodeChat(messages, 'a')).toEqual(expected)
  expect(await model.encodeChat(messages, 'b')).toEqual(expected)
  expect(await model.encodePrompt('Hello', 'a')).toEqual(await model.encodePrompt('Hello', 'b'))
  await model.close()
})

it('encodes many texts of one turn as it does each alone', async () => {
  const model = await loadTextModel(tinyTokenizerAssets(8192), 0)
  const texts = Array.from({ length: 100 }, (_, i) => `${'é'.repeat(i * 30)} text ${i}`)
  const together = await Promise.all(texts.map((text) => model.encode(text, false)))
  for (const [i, text] of texts.entries()) expect(model.decode(together[i] ?? [], false)).toBe(text)
  await model.close()
})

it.each([
  ['a truncation', { truncation: { direction: 'Right', max_length: 8, strategy: 'LongestFirst', stride: 0 } }],
  [
    'a padding',
    {
      padding: {
        ...{ strategy: 'BatchLongest', direction: 'Right', pad_to_multiple_of: null },
        ...{ pad_id: 0, pad_type_id: 0, pad_token: '<|endoftext|>' },
      },
    },
  ],
])('encodes a text whole and alone, though the file has %s', async (_, change) => {
  const model = await loadTextModel(
    changedTokenizerAssets((file) => ({ ...file, ...change })),
    0,
  )
  const texts = ['ab', 'a text of more than eight bytes']
  const together = await Promise.all(texts.map((text) => model.encodePrompt(text, text)))
  expect(together).toEqual(texts.map(tinyTokens))
  await model.close()
})

it('encodes a text with every merge, though the file drops them at random', async () => {
  const model = await loadTextModel(
    changedTokenizerAssets((file) => {
      const vocab = { ...file.model.vocab, ab: TINY_VOCAB_SIZE }
      return { ...file, model: { ...file.model, vocab, merges: [['a', 'b']], dropout: 1 } }
    }),
    0,
  )
  const ids = await model.encode('ab'.repeat(100), false)
  expect(ids).toEqual(Array.from({ length: 100 }, () => TINY_VOCAB_SIZE))
  await model.close()
})

it("keeps tenants' and kinds' texts apart, and no more than it may", () => {
  const cache = new EncodingCache()
  cache.set(EncodingCache.key('a', 'text', 'x'), [1])
  expect(cache.get(EncodingCache.key('b', 'text', 'x'))).toBeUndefined()
  expect(cache.get(EncodingCache.key('a', 'chat', 'x'))).toBeUndefined()
  expect(cache.get(EncodingCache.key('a', 'text', 'x'))).toEqual([1])
  cache.set('large', zeros(200_000))
  expect(cache.get('large')).toBeUndefined()
  for (let i = 0; i < 40; i++) cache.set(`k${i}`, zeros(100_000))
  expect(cache.get(EncodingCache.key('a', 'text', 'x'))).toBeUndefined()
})
