import { expect, test } from 'vitest'
import { modelAssets, readModelCard } from '../../engine/registry/index.js'
import { loadTextModel } from '../../gateway/text/model-text.js'
import { TINY_TOKENS, tinyGguf } from '../support/tiny-gguf.js'

async function tokens(pre: string, text: string, changes = {}): Promise<string[]> {
  const card = readModelCard('x.gguf', () => tinyGguf({ 'tokenizer.ggml.pre': pre, ...changes }))
  const model = await loadTextModel(modelAssets(card), 0)
  expect(model.hasChatTemplate).toBe(false)
  await expect(model.encodeChat([], '')).rejects.toMatchObject({ code: 'template_failed' })
  const ids = await model.encodePrompt(text, '')
  await model.close()
  return ids.map((id) => TINY_TOKENS[id] ?? '?')
}

test.each([
  ['gpt-2', 'ab ab12', ['ab', 'Ġab', '12']],
  ['smollm', 'ab ab12', ['ab', 'Ġab', '1', '2']],
  ['qwen2', 'ab ab12', ['ab', 'Ġab', '1', '2']],
  // Llama 3 prompts start with BOS.
  ['llama-bpe', 'ab ab12', ['<s>', 'ab', 'Ġab', '12']],
  // The pattern of GPT-4 lets one other character lead a word.
  ['gpt-2', '.ab', ['.', 'ab']],
  ['llama-bpe', '1212', ['<s>', '12', '1', '2']],
])('%s splits %s', async (pre, text, expected) => {
  expect(await tokens(pre, text)).toEqual(expected)
})

test('the file decides on BOS', async () => {
  expect(await tokens('llama-bpe', 'a', { 'tokenizer.ggml.add_bos_token': false })).toEqual(['a'])
  expect(await tokens('gpt-2', 'a', { 'tokenizer.ggml.add_bos_token': true })).toEqual(['<s>', 'a'])
})
