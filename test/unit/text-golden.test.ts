import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { ChatMessage } from '../../gateway/request.js'
import { loadTextModel } from '../../gateway/text/model-text.js'
import type { TextModel } from '../../gateway/text/types.js'
import { readJsonl } from '../support/jsonl.js'
import { smollm2Assets } from '../support/smollm2.js'

interface EncodeCase {
  n: number
  text: string
  utf16?: number[]
  ids: number[]
  ids_with_special_parsing: number[]
  decoded: string
  decoded_special: string
  decoded_skip_special: string
}

interface StreamCase {
  n: number
  ids: number[]
  skip_special: boolean
  deltas: string[]
  flush: string
  text: string
}

interface RenderCase {
  messages: ChatMessage[]
  with_generation_prompt: string
  without_generation_prompt: string
}

interface GreedyCase {
  messages: ChatMessage[] | null
  text: string | null
  prompt_ids: number[]
}

let model: TextModel
beforeAll(async () => {
  model = await loadTextModel(smollm2Assets(), 0)
})
afterAll(() => model.close())

describe('encode.jsonl', () => {
  const cases = readJsonl<EncodeCase>('tokenizer/encode.jsonl')

  test.each([
    [false, 'ids' as const],
    [true, 'ids_with_special_parsing' as const],
  ])('special tokens parsed: %s', async (parseSpecial, field) => {
    for (const item of cases) {
      const text = item.utf16 === undefined ? item.text : String.fromCharCode(...item.utf16)
      expect(await model.encode(text, parseSpecial), `case ${item.n}`).toEqual(item[field])
    }
    expect(cases).toHaveLength(301)
  })

  test('decodes back', () => {
    for (const item of cases) {
      expect(model.decode(item.ids, false), `case ${item.n}`).toBe(item.decoded)
      expect(model.decode(item.ids_with_special_parsing, false), `case ${item.n}`).toBe(item.decoded_special)
      expect(model.decode(item.ids_with_special_parsing, true), `case ${item.n}`).toBe(item.decoded_skip_special)
    }
  })
})

test('stream.jsonl: deltas and flush are exact', () => {
  const cases = readJsonl<StreamCase>('tokenizer/stream.jsonl')
  expect(cases).toHaveLength(137)
  for (const { n, ids, skip_special: skipSpecial, deltas, flush, text } of cases) {
    const detokenizer = model.newDetokenizer(skipSpecial)
    expect(
      ids.map((id) => detokenizer.push(id)),
      `case ${n}`,
    ).toEqual(deltas)
    expect(detokenizer.flush(), `case ${n}`).toBe(flush)
    expect(model.decode(ids, skipSpecial), `case ${n}`).toBe(text)
  }
})

test('chat_renders.json: texts are exact', async () => {
  const file = new URL('../fixtures/smollm2/chat_renders.json', import.meta.url)
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the fixture's own shape
  const cases = JSON.parse(readFileSync(file, 'utf8')) as RenderCase[]
  expect(cases).toHaveLength(20)
  for (const item of cases) {
    expect(await model.renderChat(item.messages)).toBe(item.with_generation_prompt)
    expect(await model.renderChat(item.messages, false)).toBe(item.without_generation_prompt)
  }
})

test('greedy.jsonl: prompts become the reference ids', async () => {
  const cases = readJsonl<GreedyCase>('smollm2/greedy.jsonl')
  expect(cases).toHaveLength(24)
  for (const { messages, text, prompt_ids: expected } of cases) {
    const ids = messages === null ? await model.encodePrompt(text ?? '', '') : await model.encodeChat(messages, '')
    expect(ids).toEqual(expected)
  }
})
