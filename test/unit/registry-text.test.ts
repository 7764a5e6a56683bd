/** The text files of model folders, as people's folders have them. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, expect, test } from 'vitest'
import { modelAssets, readModelCard } from '../../engine/registry/index.js'
import { goldenFolder } from '../support/golden.js'

const scratch = mkdtempSync(join(tmpdir(), 'edgeshift-text-'))
afterAll(() => rmSync(scratch, { recursive: true }))

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(scratch, 'm-'))
  cpSync(goldenFolder('plain/llama_fp16'), folder, { recursive: true })
})

type Json = Record<string, unknown>
const readJson = (name: string): Json => JSON.parse(readFileSync(join(folder, name), 'utf8')) as Json
const write = (name: string, value: unknown) => writeFileSync(join(folder, name), JSON.stringify(value))
const card = () =>
  readModelCard(folder, () => {
    throw new Error('no GGUF is expected here')
  })
const asset = (name: string): string | undefined => {
  const found = modelAssets(card()).find((file) => file.name === name)
  return found && Buffer.from(found.data).toString()
}
const config = (): Json => JSON.parse(asset('tokenizer_config.json') ?? '') as Json

test('special tokens as objects, a context of the model and not of the tokenizer', () => {
  write('tokenizer_config.json', {
    bos_token: { content: '<s>', lstrip: false },
    eos_token: { content: '</s>' },
    model_max_length: 1e30,
  })
  expect(config()).toMatchObject({ bos_token: '<s>', eos_token: '</s>', add_bos_token: false, model_max_length: 512 })
})

test('BOS before a prompt: by the configuration, or by a template step of the tokenizer', () => {
  write('tokenizer_config.json', { bos_token: '<s>', add_bos_token: true })
  expect(config()['add_bos_token']).toBe(true)
  write('tokenizer_config.json', { bos_token: '<s>' })
  const single = [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }]
  const step = { type: 'TemplateProcessing', single, pair: [], special_tokens: {} }
  const processors = [{ type: 'ByteLevel' }, step]
  write('tokenizer.json', { ...readJson('tokenizer.json'), post_processor: { type: 'Sequence', processors } })
  expect(config()['add_bos_token']).toBe(true)
})

test("ends: of the generation configuration, of config.json without one, and the tokenizer's own", () => {
  write('generation_config.json', { eos_token_id: [2] })
  expect(asset('generation_config.json')).toBe('{"bos_token_id":0,"eos_token_id":[2,1]}')
  rmSync(join(folder, 'generation_config.json'))
  expect(asset('generation_config.json')).toBe('{"bos_token_id":0,"eos_token_id":[1]}')
  write('generation_config.json', { eos_token_id: 288 })
  expect(() => modelAssets(card())).toThrow('token 288 is outside the vocabulary')
})

test('a chat template: its own file first, else the default one of the configuration', () => {
  expect(asset('chat_template.jinja')).toBeUndefined()
  const named = (name: string) => ({ name, template: name })
  write('tokenizer_config.json', { chat_template: [named('tool_use'), named('default')] })
  expect(asset('chat_template.jinja')).toBe('default')
  writeFileSync(join(folder, 'chat_template.jinja'), 'own')
  expect(asset('chat_template.jinja')).toBe('own')
})

test('added tokens without an embedding are left out; others of that kind are an error', () => {
  const tokenizer = readJson('tokenizer.json') as Json & { added_tokens: Json[]; model: Json & { vocab: Json } }
  const image = { ...tokenizer.added_tokens[0], id: 288, content: '<image>' }
  write('tokenizer.json', { ...tokenizer, added_tokens: [...tokenizer.added_tokens, image] })
  expect(asset('tokenizer.json')).not.toContain('<image>')
  const vocab = { ...tokenizer.model.vocab, beyond: 288 }
  write('tokenizer.json', { ...tokenizer, model: { ...tokenizer.model, vocab } })
  expect(() => modelAssets(card())).toThrow('token "beyond" has id 288 of 288 embeddings')
})

test('a token named like a prototype is one of the vocabulary', () => {
  const tokenizer = readJson('tokenizer.json') as Json & { added_tokens: Json[]; model: Json & { vocab: Json } }
  const named = (place: unknown) => {
    const vocab = { ...tokenizer.model.vocab, ['__proto__']: place }
    const image = { ...tokenizer.added_tokens[0], id: 288, content: '<image>' }
    const added_tokens = [...tokenizer.added_tokens, image]
    write('tokenizer.json', { ...tokenizer, added_tokens, model: { ...tokenizer.model, vocab } })
  }
  named(5)
  expect(asset('tokenizer.json')).toContain('"__proto__":5')
  named(288)
  expect(() => modelAssets(card())).toThrow('token "__proto__" has id 288 of 288 embeddings')
  named(-1)
  expect(() => modelAssets(card())).toThrow('tokenizer.json: model.vocab: not ids by token')
})

test('other tokenizers are refused by name', () => {
  write('tokenizer.json', { ...readJson('tokenizer.json'), model: { type: 'Unigram', vocab: [['a', -1]] } })
  expect(() => modelAssets(card())).toThrow('model.type "Unigram" is not supported (BPE is)')
  rmSync(join(folder, 'tokenizer.json'))
  expect(() => modelAssets(card())).toThrow('there is no tokenizer.json (other tokenizer files are not supported)')
})

test('a licence: of the README, else that there is one', () => {
  expect(card().licence).toBeUndefined()
  writeFileSync(join(folder, 'LICENSE'), 'text')
  expect(card().licence).toBe('see LICENSE')
  writeFileSync(join(folder, 'README.md'), '---\nlanguage: en\nlicense: apache-2.0\n---\n# x')
  expect(card().licence).toBe('apache-2.0')
})
