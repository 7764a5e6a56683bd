/** SentencePiece vocabularies of GGUF files, against ids that the sentencepiece library (0.2) gave for its own model. */
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import type { GgufValue } from '../../engine/native.js'
import { Metadata } from '../../engine/registry/metadata.js'
import { ggufText, readTokenizer } from '../../engine/registry/tokenizer.js'
import { loadTextModel } from '../../gateway/text/model-text.js'

interface Vocabulary {
  tokens: string[]
  scores: number[]
  types: number[]
  cases: { text: string; ids: number[]; decoded: string }[]
}

// oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the fixture's own shape
const fixture = JSON.parse(
  readFileSync(new URL('../fixtures/tokenizer/sentencepiece.json', import.meta.url), 'utf8'),
) as { prefix: Vocabulary; plain: Vocabulary }

const metadataOf = (
  { tokens, scores, types }: Vocabulary,
  spacePrefix: boolean,
  changes: Record<string, GgufValue> = {},
) =>
  new Metadata('x.gguf', {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.scores': scores,
    'tokenizer.ggml.token_type': types,
    'tokenizer.ggml.add_space_prefix': spacePrefix,
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.unknown_token_id': 0,
    ...changes,
  })

describe.each([
  ['with a space before the text', fixture.prefix, true],
  ['without', fixture.plain, false],
])('%s', (_, vocabulary, spacePrefix) => {
  test('the same ids and texts', async () => {
    const tokenizer = readTokenizer(metadataOf(vocabulary, spacePrefix), vocabulary.tokens.length)
    const model = await loadTextModel(ggufText(tokenizer, 4096), 0)
    const wrong: unknown[] = []
    for (const { text, ids, decoded } of vocabulary.cases) {
      const found = await model.encode(text, false)
      if (found.join() !== ids.join()) wrong.push({ text, ids, found })
      else if (model.decode(ids, false) !== decoded) wrong.push({ text, decoded, found: model.decode(ids, false) })
    }
    expect(wrong).toEqual([])
    expect(await model.encodePrompt('x', '')).toEqual([1, ...(await model.encode('x', false))])
    await model.close()
  })
})

test('scores must be there, one for each token', () => {
  const read = (changes: Record<string, GgufValue>) => () =>
    readTokenizer(metadataOf(fixture.plain, false, changes), fixture.plain.tokens.length)
  expect(read({ 'tokenizer.ggml.scores': [1, 2] })).toThrow('tokenizer.ggml.scores has 2 entries for 700 tokens')
  const nan = fixture.plain.scores.map(() => Number.NaN)
  expect(read({ 'tokenizer.ggml.scores': nan })).toThrow('tokenizer.ggml.scores holds NaN')
})
