import { describe, expect, test } from 'vitest'
import type { GgufFile, GgufValue } from '../../engine/native.js'
import { modelAssets } from '../../engine/registry/index.js'
import { Metadata } from '../../engine/registry/metadata.js'
import { readTokenizer } from '../../engine/registry/tokenizer.js'
import { card, change, fault } from '../support/gguf-cards.js'
import { TINY_TOKENS, tinyGguf } from '../support/tiny-gguf.js'

describe('a tokenizer', () => {
  test.each<[string, GgufFile, string]>([
    ['none', change('tokenizer.ggml.model', undefined), 'invalid_file: x.gguf: tokenizer.ggml.model is missing'],
    [
      'other kind',
      change('tokenizer.ggml.model', 'rwkv'),
      'unsupported: x.gguf: tokenizer.ggml.model "rwkv" is not supported (gpt2 and llama are: byte-level and SentencePiece BPE)',
    ],
    [
      'unknown splitting',
      change('tokenizer.ggml.pre', 'brand-new'),
      'unsupported: x.gguf: tokenizer.ggml.pre "brand-new" is not known (gpt-2, smollm, starcoder, refact, command-r, llama-bpe, llama3, llama-v3, qwen2, smaug-bpe are)',
    ],
    ['no splitting', change('tokenizer.ggml.pre', undefined), 'invalid_file: x.gguf: tokenizer.ggml.pre is missing'],
    [
      'too few tokens',
      change('tokenizer.ggml.tokens', ['a']),
      'invalid_file: x.gguf: tokenizer.ggml.tokens has 1 entries for 16 embeddings',
    ],
    [
      'tokens of numbers',
      change('tokenizer.ggml.tokens', [1, 2]),
      'invalid_file: x.gguf: tokenizer.ggml.tokens is a list, not a list of texts',
    ],
    [
      'token twice',
      change('tokenizer.ggml.tokens', [...TINY_TOKENS.slice(0, 15), 'a']),
      'invalid_file: x.gguf: token 15 ("a") occurs twice',
    ],
    [
      'empty token',
      change('tokenizer.ggml.tokens', [...TINY_TOKENS.slice(0, 15), '']),
      'invalid_file: x.gguf: token 15 has 0 characters',
    ],
    [
      'types',
      change('tokenizer.ggml.token_type', [1]),
      'invalid_file: x.gguf: tokenizer.ggml.token_type has 1 entries for 16 tokens',
    ],
    [
      'no merges',
      change('tokenizer.ggml.merges', undefined),
      'invalid_file: x.gguf: tokenizer.ggml.merges is missing, not a list of texts',
    ],
    [
      'merge of unknown tokens',
      change('tokenizer.ggml.merges', ['a b', 'a z']),
      'invalid_file: x.gguf: merge 1 ("a z") is not a pair of tokens that make a token',
    ],
    [
      'merge to an unknown token',
      change('tokenizer.ggml.merges', ['b a']),
      'invalid_file: x.gguf: merge 0 ("b a") is not a pair of tokens that make a token',
    ],
    [
      'merge of three',
      change('tokenizer.ggml.merges', ['a b c']),
      'invalid_file: x.gguf: merge 0 ("a b c") is not a pair of tokens that make a token',
    ],
    [
      'BOS outside',
      change('tokenizer.ggml.bos_token_id', 16),
      'invalid_file: x.gguf: tokenizer.ggml.bos_token_id is 16, outside 0 to 15',
    ],
    [
      'EOS outside',
      change('tokenizer.ggml.eos_token_id', 2 ** 32 - 1),
      'invalid_file: x.gguf: tokenizer.ggml.eos_token_id is 4294967295, outside 0 to 15',
    ],
    [
      'BOS wanted, but none',
      tinyGguf({ 'tokenizer.ggml.bos_token_id': undefined, 'tokenizer.ggml.add_bos_token': true }),
      'invalid_file: x.gguf: tokenizer.ggml.add_bos_token is set, but there is no bos_token_id',
    ],
    [
      'template too long',
      tinyGguf({ 'tokenizer.chat_template': 'x'.repeat(2 ** 20 + 1) }),
      'invalid_file: x.gguf: tokenizer.chat_template has 1048577 characters, more than 1048576',
    ],
  ])('%s', (_, file, message) => {
    expect(fault(file)).toEqual(message)
  })

  test('becomes the files of the text layer', () => {
    const file = tinyGguf({
      'tokenizer.chat_template': '{{ x }}',
      'tokenizer.ggml.eot_token_id': 2,
      'tokenizer.ggml.eom_token_id': 1,
      'tokenizer.ggml.token_type': [3, 3, 2, ...TINY_TOKENS.slice(3).map((token) => (token === '!' ? 4 : 1))],
    })
    const assets = new Map(modelAssets(card(file)).map(({ name, data }) => [name, Buffer.from(data).toString()]))
    expect([...assets.keys()]).toEqual([
      'tokenizer.json',
      'tokenizer_config.json',
      'generation_config.json',
      'chat_template.jinja',
    ])
    const parse = (name: string): unknown => JSON.parse(assets.get(name) ?? '')
    expect(parse('tokenizer.json')).toMatchObject({
      added_tokens: [
        { id: 0, content: '<s>', special: true },
        { id: 1, content: '</s>', special: true },
        { id: 2, content: '<unk>', special: true },
        { id: 15, content: '!', special: false },
      ],
      pre_tokenizer: { type: 'ByteLevel', use_regex: true },
      model: {
        type: 'BPE',
        vocab: { '<s>': 0, a: 3 },
        merges: [
          ['a', 'b'],
          ['Ġ', 'a'],
          ['Ġ', 'ab'],
          ['1', '2'],
        ],
      },
    })
    expect(parse('tokenizer_config.json')).toEqual({
      bos_token: '<s>',
      eos_token: '</s>',
      add_bos_token: false,
      model_max_length: 128,
    })
    expect(parse('generation_config.json')).toEqual({ bos_token_id: 0, eos_token_id: [1, 2] })
    expect(assets.get('chat_template.jinja')).toBe('{{ x }}')
  })
})

describe('an end of a turn', () => {
  const ID = 15
  const read = (name: string, type: number, changes: Record<string, GgufValue> = {}) => {
    const { metadata } = tinyGguf({
      'tokenizer.ggml.tokens': [...TINY_TOKENS.slice(0, ID), name],
      'tokenizer.ggml.token_type': [3, 3, 2, ...TINY_TOKENS.slice(3, ID).map(() => 1), type],
      ...changes,
    })
    return readTokenizer(new Metadata('x.gguf', metadata), TINY_TOKENS.length)
  }

  test.each([
    ['<|eot_id|>', 3],
    ['<|im_end|>', 3],
    ['<|end|>', 3],
    ['<|end|>', 1],
    ['<end_of_turn>', 4],
    ['<|eom_id|>', 3],
  ])('is found by its name, %s of type %i, and is no text', (name, type) => {
    expect(read(name, type)).toMatchObject({ eosIds: [1, ID], control: [0, 1, 2, ID], userDefined: [] })
  })

  test('is not looked for where the metadata states it', () => {
    const eot = { 'tokenizer.ggml.eot_token_id': 2 }
    expect(read('<|end|>', 1, eot)).toMatchObject({ eosIds: [1, 2], control: [0, 1, 2] })
    expect(read('<|eom_id|>', 3, eot).eosIds).toEqual([1, 2, ID])
    expect(read('<|eom_id|>', 3, { ...eot, 'tokenizer.ggml.eom_token_id': 2 }).eosIds).toEqual([1, 2])
  })

  test('is not made up: a vocabulary without one has the EOS alone', () => {
    expect(read('end_of_turn', 1)).toMatchObject({ eosIds: [1], control: [0, 1, 2] })
  })

  test('is taken out of the merging of a SentencePiece vocabulary', () => {
    const changes = { 'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.scores': TINY_TOKENS.map(() => 0) }
    expect(read('<|end|>', 1, changes).sentencePiece?.normal).not.toContain(ID)
  })
})
