/** Tokenizers of the SentencePiece kind, against the tokenizers library with special tokens in its vocabulary. */
import { Tokenizer } from 'tokenizers'
import { describe, expect, test } from 'vitest'
import { loadTextModel } from '../../gateway/text/model-text.js'
import type { TextModel } from '../../gateway/text/types.js'

const SPECIAL = ['<unk>', '<s>', '</s>', '[INST]', '[/INST]']
const LETTERS = ['\u2581', 'a', 'b', 'c', '.', '1', 'é']
const MERGES: [string, string][] = [
  ['\u2581', 'a'],
  ['a', 'b'],
  ['\u2581', '\u2581'],
  ['\u2581a', 'b'],
  ['b', 'c'],
]
const TEMPLATE = `{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}`

const prepend = { type: 'Prepend', prepend: '\u2581' }
const replace = { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' }
const metaspace = { type: 'Metaspace', replacement: '\u2581', prepend_scheme: 'first', split: false }
const decoders = (strip: boolean) => [
  { type: 'Replace', pattern: { String: '\u2581' }, content: ' ' },
  { type: 'ByteFallback' },
  { type: 'Fuse' },
  ...(strip ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
]

/** Kinds as files have them: with a space before every piece (Llama 2), only before the text (Mistral), none (Gemma). */
const KINDS: Record<string, object> = {
  'a space before every piece': {
    normalizer: { type: 'Sequence', normalizers: [prepend, replace] },
    pre_tokenizer: null,
    decoder: { type: 'Sequence', decoders: decoders(true) },
  },
  'a space before the text': {
    normalizer: null,
    pre_tokenizer: metaspace,
    decoder: { type: 'Sequence', decoders: decoders(true) },
  },
  'no space': {
    normalizer: replace,
    pre_tokenizer: null,
    decoder: { type: 'Sequence', decoders: decoders(false) },
  },
}

function tokenizerJson(kind: object, strips = { lstrip: false, rstrip: false }): string {
  const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`)
  const names = [...SPECIAL, ...bytes, ...LETTERS, ...MERGES.map((pair) => pair.join(''))]
  const added = SPECIAL.map((content, id) => ({
    ...{ id, content, single_word: false, ...strips, normalized: false, special: true },
  }))
  return JSON.stringify({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    post_processor: null,
    ...kind,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(names.map((name, id) => [name, id])),
      merges: MERGES,
    },
  })
}

const asset = (name: string, text: string) => ({ name, data: Buffer.from(text) })
const load = (json: string): Promise<TextModel> =>
  loadTextModel(
    [
      asset('tokenizer.json', json),
      asset('tokenizer_config.json', JSON.stringify({ bos_token: '<s>', add_bos_token: true, model_max_length: 1000 })),
      asset('generation_config.json', JSON.stringify({ eos_token_id: 2 })),
      asset('chat_template.jinja', TEMPLATE),
    ],
    0,
  )

const NOTHING_ADDED = { addSpecialTokens: false }
const TEXTS = ['ab abc', ' ab', '  a b', 'ab\nc', 'é 漢 1.', '', 'abc']

describe.each(Object.entries(KINDS))('%s', (_, kind) => {
  const json = tokenizerJson(kind)
  const reference = Tokenizer.fromString(json)
  const idsOf = async (text: string) => (await reference.encode(text, null, NOTHING_ADDED)).getIds()

  test.each(TEXTS)('%j', async (text) => {
    const model = await load(json)
    const ids = await model.encode(text, false)
    expect(ids).toEqual(await idsOf(text))
    expect(model.decode(ids, false)).toBe(await reference.decode(ids, false))
    expect(await model.encodePrompt(text, '')).toEqual([1, ...ids])
    await model.close()
  })

  test('a chat: template text around special tokens', async () => {
    const model = await load(json)
    const messages = [
      { role: 'user' as const, content: 'ab c' },
      { role: 'user' as const, content: 'abc' },
    ]
    expect(await model.encodeChat(messages, '')).toEqual(await idsOf('<s>[INST] ab c [/INST][INST] abc [/INST]'))
    await model.close()
  })

  test('a chat: white space that special tokens strip, as in Phi-3', async () => {
    const stripping = tokenizerJson(kind, { lstrip: true, rstrip: true })
    const model = await load(stripping)
    const expected = await Tokenizer.fromString(stripping).encode('<s>[INST] ab c [/INST]', null, NOTHING_ADDED)
    expect(await model.encodeChat([{ role: 'user', content: 'ab c' }], '')).toEqual(expected.getIds())
    await model.close()
  })

  test('special tokens that a user types stay text', async () => {
    const model = await load(json)
    const ids = await model.encode('<s>a</s>', false)
    expect(ids.every((id) => id >= SPECIAL.length)).toBe(true)
    expect(model.decode(ids, false)).toBe('<s>a</s>')
    await model.close()
  })

  test('streams bytes as whole characters', async () => {
    const model = await load(json)
    const stream = model.newDetokenizer(false)
    const deltas = (await model.encode('漢a', false)).map((id) => stream.push(id))
    expect((deltas.join('') + stream.flush()).trimStart()).toBe('漢a')
    expect(deltas.filter((delta) => delta.includes('\ufffd'))).toEqual([])
    await model.close()
  })
})

test('another decoder is refused by name', async () => {
  const json = tokenizerJson({ ...KINDS['no space'], decoder: { type: 'WordPiece', prefix: '##', cleanup: true } })
  await expect(load(json)).rejects.toThrow(
    'tokenizer.json: decoder: neither a ByteLevel decoder nor a sequence with ByteFallback',
  )
})

test('a token named like a prototype has its id and text', async () => {
  const name = '__proto__'
  const file = JSON.parse(tokenizerJson(KINDS['no space'] ?? {})) as { model: { vocab: Record<string, number> } }
  const size = Object.keys(file.model.vocab).length
  const model = await load(
    JSON.stringify({ ...file, model: { ...file.model, vocab: { ...file.model.vocab, [name]: size } } }),
  )
  expect(model.vocabSize).toBe(size + 1)
  expect(model.tokenText(size)).toBe(name)
  await model.close()
  await expect(load(JSON.stringify({ ...file, model: { ...file.model, vocab: { a: '1' } } }))).rejects.toThrow(
    'tokenizer.json: model.vocab: not ids by token',
  )
})
