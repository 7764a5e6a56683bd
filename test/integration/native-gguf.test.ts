import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import { readModelCard } from '../../engine/registry/index.js'

interface HostileCase {
  path: string
  wrong: string
  expect: string
}

const fixtures = new URL('../fixtures/hostile/', import.meta.url)
const cases = JSON.parse(readFileSync(new URL('index.json', fixtures), 'utf8')) as HostileCase[]
const addon = loadAddon()

/** Well-formed files whose content is wrong: what reads the metadata refuses them, not the reader of the format. */
const WRONG_CONTENT = new Set([
  'gguf/heads_0.gguf',
  'gguf/heads_not_dividing.gguf',
  'gguf/block_count_huge.gguf',
  'gguf/embedding_mismatch.gguf',
  'gguf/missing_tensors.gguf',
  'gguf/no_architecture.gguf',
  'gguf/token_ids_out_of_range.gguf',
])

const failure = (run: () => unknown): { code: string; message: string } | undefined => {
  try {
    run()
  } catch (error) {
    return error as { code: string; message: string }
  }
  return undefined
}

describe('the GGUF reader', () => {
  test.each(cases.filter(({ path }) => path.startsWith('gguf/') && !WRONG_CONTENT.has(path)))(
    'refuses $path: $wrong',
    ({ path }) => {
      const file = new URL(path, fixtures).pathname
      const before = process.memoryUsage().rss
      const error = failure(() => addon.readGguf(file))
      expect(error?.code).toBe('invalid_file')
      expect(error?.message.startsWith(`${file}: `)).toBe(true)
      expect(process.memoryUsage().rss - before).toBeLessThan(32 << 20)
    },
  )

  test.each([...WRONG_CONTENT])('leaves %s to the model card, which refuses it', (path) => {
    const file = new URL(path, fixtures).pathname
    expect(addon.readGguf(file).version).toBeGreaterThan(1)
    expect(failure(() => readModelCard(file, (name) => addon.readGguf(name)))?.code).toBe('invalid_file')
  })

  test('says what is not a readable file', () => {
    expect(failure(() => addon.readGguf('/nonexistent.gguf'))?.code).toBe('io_error')
    expect(failure(() => addon.readGguf('/'))?.message).toContain('not a regular file')
    expect(failure(() => addon.readGguf('a\0b'))?.code).toBe('invalid_argument')
  })

  test('reads the embedded model', () => {
    const file = addon.readGguf(new URL('../../models/smollm2-135m-instruct-q4_1.gguf', import.meta.url).pathname)
    expect(file.metadata['general.architecture']).toBe('llama')
    expect(file.metadata['llama.block_count']).toBe(30)
    expect(file.metadata['tokenizer.ggml.tokens']).toHaveLength(49152)
    expect(file.metadata['tokenizer.ggml.token_type']).toBeInstanceOf(Int32Array)
    expect(file.tensors).toHaveLength(272)
    expect(file.tensors[0]).toMatchObject({ name: 'token_embd.weight', type: 'q8_0', shape: [49152, 576] })
    expect(Object.getPrototypeOf(file.metadata)).toBeNull()
  })
})
