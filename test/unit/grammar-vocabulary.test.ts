/** The bytes that grammars are spelt with, against those that answers are decoded by. */
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { vocabularyBytes } from '../../engine/grammar/vocabulary.js'
import { Metadata } from '../../engine/registry/metadata.js'
import { ggufText, readTokenizer } from '../../engine/registry/tokenizer.js'
import { byteLevelBytes, sentencePieceBytes } from '../../engine/text/token-bytes.js'
import type { TokenizerFile } from '../../gateway/text/assets.js'
import { TokenTable } from '../../gateway/text/token-table.js'
import { changedTokenizerAssets, tinyTokenizerAssets } from '../support/tiny-tokenizer.js'

type Assets = ReturnType<typeof tinyTokenizerAssets>

const fixture = (name: string): Buffer => readFileSync(new URL(`../fixtures/${name}`, import.meta.url))
const tokenizerOf = (assets: Assets): Uint8Array =>
  assets.find(({ name }) => name === 'tokenizer.json')?.data ?? new Uint8Array()

function sentencePiece(kind: 'prefix' | 'plain'): Uint8Array {
  const all = JSON.parse(fixture('tokenizer/sentencepiece.json').toString()) as Record<
    string,
    { tokens: string[]; scores: number[]; types: number[] }
  >
  const { tokens = [], scores = [], types = [] } = all[kind] ?? {}
  const metadata = new Metadata('x.gguf', {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.scores': scores,
    'tokenizer.ggml.token_type': types,
    'tokenizer.ggml.add_space_prefix': kind === 'prefix',
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.unknown_token_id': 0,
  })
  return tokenizerOf(ggufText(readTokenizer(metadata, tokens.length), 4096))
}

/** With a token that is added, but not special, and one that the vocabulary has not. */
const added = changedTokenizerAssets((file) => ({
  ...file,
  model: { ...file.model, vocab: { ...file.model.vocab, 'Ġé▁': 259, Ġth: 260 } },
  added_tokens: [
    ...file.added_tokens,
    { id: 261, content: '<tool call>', special: false },
    { id: 262, content: 'Ġ▁', special: false },
  ],
}))

describe.each([
  ['byte-level', fixture('formats/plain/qwen3/checkpoint/tokenizer.json'), 259],
  ['byte-level of a GGUF file', tokenizerOf(tinyTokenizerAssets(4096)), 259],
  ['byte-level with added tokens', tokenizerOf(added), 263],
  ['SentencePiece with a space before the text', sentencePiece('prefix'), 700],
  ['SentencePiece without', sentencePiece('plain'), 700],
])('a vocabulary: %s', (_, tokenizer, size) => {
  const table = new TokenTable(JSON.parse(Buffer.from(tokenizer).toString()) as TokenizerFile)
  const bytes = vocabularyBytes({ tokenizer, vocabSize: size })

  it('has the bytes that answers are decoded by, but for control tokens', () => {
    expect(table.size).toBe(size)
    expect(bytes.length).toBe(size)
    const wrong = [...bytes.keys()].filter((id) =>
      table.isSpecial(id)
        ? bytes[id] !== undefined
        : !Buffer.from(table.bytes(id)).equals(bytes[id] ?? Buffer.from('?')),
    )
    expect(wrong).toEqual([])
    expect(bytes.filter((one) => one === undefined).length).toBeGreaterThan(0)
  })

  it('spells every byte', () => {
    const single = new Set(bytes.filter((one) => one?.length === 1).map((one) => one?.[0]))
    expect(single.size).toBe(256)
  })

  it('has no bytes where the model has more logits', () => {
    expect(vocabularyBytes({ tokenizer, vocabSize: size + 5 })).toEqual([
      ...bytes,
      ...Array.from({ length: 5 }, () => undefined),
    ])
  })
})

describe("a token's bytes", () => {
  it.each([
    ['Ġhello', ' hello'],
    ['ĊĉĠ', '\n\t '],
    ['Ã©', 'é'],
    ['ðŁĺĢ', '😀'],
    ['!~¡ÿ', Buffer.from([0x21, 0x7e, 0xa1, 0xff])],
    ['ĀġŃ', Buffer.from([0x00, 0x7f, 0xad])],
    ['<|end|>', '<|end|>'],
    ['ab▁Ġ', 'ab▁Ġ'],
    ['é日', 'é日'],
    ['', ''],
  ])('byte-level: %s', (name, bytes) => {
    expect(Buffer.from(byteLevelBytes(name))).toEqual(Buffer.from(bytes))
  })

  it('byte-level: each byte has one character', () => {
    const characters = Array.from({ length: 0x180 }, (_, code) => String.fromCodePoint(code))
    const bytes = characters.map(byteLevelBytes).filter((one) => one.length === 1)
    expect(new Set(bytes.map(([byte]) => byte)).size).toBe(256)
  })

  it.each([
    ['▁hello', ' hello'],
    ['▁▁a▁', '  a '],
    ['é日😀', 'é日😀'],
    ['<0x0A>', '\n'],
    ['<0xFF>', Buffer.from([0xff])],
    ['<0x0a>', '<0x0a>'],
    ['<0x0A>a', '<0x0A>a'],
    ['<0x100>', '<0x100>'],
    ['Ġ', 'Ġ'],
    ['', ''],
  ])('SentencePiece: %s', (name, bytes) => {
    expect(Buffer.from(sentencePieceBytes(name))).toEqual(Buffer.from(bytes))
  })
})
