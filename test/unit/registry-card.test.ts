import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import type { GgufFile, TensorInfo } from '../../engine/native.js'
import { estimateWeightBytes } from '../../engine/registry/index.js'
import { card, change, fault } from '../support/gguf-cards.js'
import { tensor, TINY_TOKENS, tinyGguf } from '../support/tiny-gguf.js'

const folder = mkdtempSync(join(tmpdir(), 'edgeshift-registry-'))
afterAll(() => rmSync(folder, { recursive: true }))

const without = (name: string) => (tensors: TensorInfo[]) => tensors.filter((info) => info.name !== name)
const replaced = (info: TensorInfo) => (tensors: TensorInfo[]) => [...without(info.name)(tensors), info]
const added = (info: TensorInfo) => (tensors: TensorInfo[]) => [...tensors, info]

const biases = (tensors: TensorInfo[]) => [
  ...tensors,
  tensor('blk.0.attn_q.bias', [32]),
  tensor('output.weight', [16, 32]),
]

describe('a llama header', () => {
  test('becomes spec, weights and limits', () => {
    const { spec, weights, ...rest } = card(tinyGguf({ 'general.license': 'mit' }))
    expect(rest).toMatchObject({
      path: 'x.gguf',
      files: ['x.gguf'],
      format: 'gguf',
      precision: 'fp16',
      name: 'tiny',
      architecture: 'llama',
      licence: 'mit',
      contextLength: 128,
      parameters: 9824,
    })
    expect(spec).toMatchObject({
      vocabSize: TINY_TOKENS.length,
      hiddenSize: 32,
      numLayers: 1,
      numHeads: 4,
      numKvHeads: 2,
      headDim: 8,
      intermediateSize: 64,
      ropeInterleaved: true,
      windows: Int32Array.of(0),
    })
    expect(spec.attentionScale).toBeCloseTo(1 / Math.sqrt(8))
    expect([...(spec.ropes[0]?.table.invFreq ?? [])]).toEqual(
      [1, 0.1, 0.01, 0.001].map((frequency) => Math.fround(frequency)),
    )
    expect(weights.map(({ slot }) => slot)).toEqual(
      ['embed', 'attn_norm', 'q', 'k', 'v', 'o', 'ffn_norm', 'gate', 'up', 'down', 'final_norm'].map((slot) =>
        slot === 'embed' || slot === 'final_norm' ? slot : `layers.0.${slot}`,
      ),
    )
  })

  test('optional tensors take their slots', () => {
    const slots = card(tinyGguf({}, biases)).weights.map(({ slot }) => slot)
    expect(slots).toContain('layers.0.q_bias')
    expect(slots).toContain('head')
  })

  test('settings with an effect on the numbers', () => {
    const { spec } = card(
      tinyGguf({
        'llama.rope.freq_base': 500_000,
        'llama.rope.dimension_count': 4,
        'llama.rope.scaling.type': 'linear',
        'llama.rope.scaling.factor': 2,
        'llama.attention.sliding_window': 64,
        'llama.attention.scale': 0.5,
      }),
    )
    expect([...(spec.ropes[0]?.table.invFreq ?? [])]).toEqual([0.5, Math.fround(500_000 ** -0.5 / 2)])
    expect(spec).toMatchObject({ attentionScale: 0.5, windows: Int32Array.of(64) })
    expect(card(tinyGguf({ 'llama.attention.head_count_kv': [2] })).spec.numKvHeads).toBe(2)
    expect(card(tinyGguf({ 'llama.attention.head_count_kv': Int32Array.of(2) })).spec.numKvHeads).toBe(2)
  })

  test('rope_freqs divides the frequencies', () => {
    const path = join(folder, 'freqs.gguf')
    const floats = Buffer.alloc(16 + 16)
    for (const [index, value] of [1, 2, 4, 8].entries()) floats.writeFloatLE(value, 16 + index * 4)
    writeFileSync(path, floats)
    const file = tinyGguf({}, added({ ...tensor('rope_freqs.weight', [4]), offset: 16 }))
    const { spec } = card(file, path)
    expect([...(spec.ropes[0]?.table.invFreq ?? [])]).toEqual(
      [1, 0.1 / 2, 0.01 / 4, 0.001 / 8].map((value) => expect.closeTo(value)),
    )
    floats.writeFloatLE(Number.NaN, 20)
    writeFileSync(path, floats)
    expect(() => card(file, path)).toThrow('holds a value outside 1e-6 to 1e6')
  })

  test.each<[string, GgufFile, string]>([
    [
      'no architecture',
      change('general.architecture', undefined),
      'invalid_file: x.gguf: general.architecture is missing',
    ],
    [
      'other architecture',
      change('general.architecture', 'mamba'),
      'unsupported: x.gguf: architecture "mamba" is not supported (llama, qwen2, qwen3, smollm3, gemma2, gemma3, phi3 are)',
    ],
    [
      'architecture of a number',
      change('general.architecture', 7),
      'invalid_file: x.gguf: general.architecture is 7, not a text',
    ],
    ['no layers', change('llama.block_count', 0), 'invalid_file: x.gguf: llama.block_count is 0, outside 1 to 1024'],
    [
      '2^31 layers',
      change('llama.block_count', 2 ** 31),
      'invalid_file: x.gguf: llama.block_count is 2147483648, outside 1 to 1024',
    ],
    [
      'layers of text',
      change('llama.block_count', '3'),
      'invalid_file: x.gguf: llama.block_count is "3", not a whole number',
    ],
    [
      'fraction of a layer',
      change('llama.block_count', 0.5),
      'invalid_file: x.gguf: llama.block_count is 0.5, not a whole number',
    ],
    [
      'missing size',
      change('llama.embedding_length', undefined),
      'invalid_file: x.gguf: llama.embedding_length is missing, not a whole number',
    ],
    [
      'no heads',
      change('llama.attention.head_count', 0),
      'invalid_file: x.gguf: llama.attention.head_count is 0, outside 1 to 1024',
    ],
    [
      'heads that do not divide',
      change('llama.attention.head_count', 3),
      'invalid_file: x.gguf: llama.attention.head_count 3 is not a multiple of head_count_kv 2',
    ],
    [
      'width not a multiple of heads',
      tinyGguf({ 'llama.attention.head_count': 6 }),
      'invalid_file: x.gguf: llama.embedding_length 32 is not a multiple of head_count 6, and no key_length is given',
    ],
    [
      'more kv heads than heads',
      change('llama.attention.head_count_kv', 8),
      'invalid_file: x.gguf: llama.attention.head_count_kv is 8, outside 1 to 4',
    ],
    [
      'kv heads by layer',
      tinyGguf({ 'llama.attention.head_count_kv': [2, 4] }),
      'invalid_file: x.gguf: llama.attention.head_count_kv is not a count for each layer',
    ],
    [
      'odd head',
      change('llama.attention.key_length', 7),
      'invalid_file: x.gguf: a head of 7 values cannot be rotated in pairs',
    ],
    [
      'keys unlike values',
      tinyGguf({ 'llama.attention.value_length': 4 }),
      'unsupported: x.gguf: key_length 8 and value_length 4 differ',
    ],
    [
      'head size against tensors',
      change('llama.attention.key_length', 16),
      'invalid_file: x.gguf: tensor "blk.0.attn_q.weight" has shape [32, 32]; the metadata says [64, 32]',
    ],
    [
      'width against tensors',
      tinyGguf({ 'llama.embedding_length': 64 }),
      'invalid_file: x.gguf: tensor "token_embd.weight" has shape [16, 32]; the metadata says [16, 64]',
    ],
    [
      'vocabulary size',
      change('llama.vocab_size', 99),
      'invalid_file: x.gguf: llama.vocab_size is not the 16 rows of token_embd.weight',
    ],
    [
      'no epsilon',
      change('llama.attention.layer_norm_rms_epsilon', undefined),
      'invalid_file: x.gguf: llama.attention.layer_norm_rms_epsilon is missing, not a number',
    ],
    [
      'NaN',
      change('llama.rope.freq_base', Number.NaN),
      'invalid_file: x.gguf: llama.rope.freq_base is NaN, not a number',
    ],
    [
      'infinity',
      change('llama.rope.freq_base', Infinity),
      'invalid_file: x.gguf: llama.rope.freq_base is Infinity, outside 1.000001 to 1000000000000',
    ],
    [
      'odd rotation',
      change('llama.rope.dimension_count', 3),
      'invalid_file: x.gguf: llama.rope.dimension_count 3 is odd',
    ],
    [
      'yarn',
      change('llama.rope.scaling.type', 'yarn'),
      'invalid_file: x.gguf: llama.rope.scaling.factor is missing, not a number',
    ],
    [
      'scaling by another rule',
      change('llama.rope.scaling.type', 'ntk'),
      'unsupported: x.gguf: rope scaling "ntk" is not supported (none, linear, yarn and longrope are)',
    ],
    ['experts', change('llama.expert_count', 8), 'unsupported: x.gguf: mixtures of experts are not supported'],
    [
      'missing tensor',
      tinyGguf({}, without('blk.0.ffn_up.weight')),
      'invalid_file: x.gguf: tensor "blk.0.ffn_up.weight" is missing',
    ],
    [
      'missing layer',
      change('llama.block_count', 2),
      'invalid_file: x.gguf: tensor "blk.1.attn_norm.weight" is missing',
    ],
    [
      'tensor with no place',
      tinyGguf({}, added(tensor('blk.1.attn_norm.weight', [32]))),
      'unsupported: x.gguf: tensor "blk.1.attn_norm.weight" has no place in a llama model of 1 layers',
    ],
    [
      'bias with no place',
      tinyGguf({}, added(tensor('blk.0.ffn_up.bias', [64]))),
      'unsupported: x.gguf: tensor "blk.0.ffn_up.bias" has no place in a llama model of 1 layers',
    ],
    [
      'tensor type',
      tinyGguf({}, replaced(tensor('blk.0.ffn_up.weight', [64, 32], 'q8_1'))),
      expect.stringContaining('tensor "blk.0.ffn_up.weight" has type q8_1; supported are f32'),
    ],
    [
      'wrong factors',
      tinyGguf({}, added(tensor('rope_freqs.weight', [3]))),
      'invalid_file: x.gguf: tensor "rope_freqs.weight" is not 4 values of type f32',
    ],
    [
      'prototype as key',
      tinyGguf({ 'llama.block_count': undefined, toString: 5 }),
      'invalid_file: x.gguf: llama.block_count is missing, not a whole number',
    ],
  ])('%s', (_, file, message) => {
    expect(fault(file)).toEqual(message)
  })
})

test('bytes of each rung', () => {
  const tiny = card(tinyGguf())
  // Worked by hand: padded heads (8 to 16) double q, k, v and o; norms are floats; whole pages.
  const norms = 3 * 32 * 4
  const fp16 = 2 * (16 * 32 + 128 * 32 + 32 * 64 + 128 * 32 + 32 * 64)
  expect(estimateWeightBytes(tiny, 'fp16')).toBe(Math.ceil(fp16 / 4096) * 4096 + norms)
  const sizes = (['fp16', 'int8', 'int4'] as const).map((precision) => estimateWeightBytes(tiny, precision))
  expect(sizes.toSorted((a, b) => b - a)).toEqual(sizes)
})
