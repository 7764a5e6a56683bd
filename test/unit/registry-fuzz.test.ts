import { array, assert, boolean, constantFrom, double, integer, oneof, property, string } from 'fast-check'
import { expect, test } from 'vitest'
import type { GgufValue, TensorInfo } from '../../engine/native.js'
import { estimateWeightBytes, modelAssets, ModelFileError, readModelCard } from '../../engine/registry/index.js'
import { tinyGguf } from '../support/tiny-gguf.js'

const keys = Object.keys(tinyGguf().metadata).concat(
  'llama.vocab_size',
  'llama.rope.freq_base',
  'llama.rope.dimension_count',
  'llama.rope.scaling.type',
  'llama.rope.scaling.factor',
  'llama.attention.key_length',
  'llama.attention.value_length',
  'llama.attention.sliding_window',
  'llama.expert_count',
  'tokenizer.ggml.add_bos_token',
  'tokenizer.ggml.eot_token_id',
  'tokenizer.chat_template',
)
const scalar = oneof(integer({ min: -2, max: 70 }), integer(), double(), boolean(), string({ maxLength: 12 }))
const value = oneof<[typeof scalar, ReturnType<typeof array<GgufValue>>]>(
  scalar,
  array<GgufValue>(scalar, { maxLength: 20 }),
)
const tensorIndex = integer({ min: 0, max: 10 })
const shape = array(integer({ min: 1, max: 70 }), { minLength: 1, maxLength: 4 })

/** True when a header is described with figures that make sense, or refused by a ModelFileError. */
function isHandled(read: () => ReturnType<typeof tinyGguf>): boolean {
  try {
    const card = readModelCard('x.gguf', read)
    const finite = card.spec.ropes.every(({ table }) => table.invFreq.every((frequency) => Number.isFinite(frequency)))
    return finite && Number.isSafeInteger(estimateWeightBytes(card, 'int8')) && modelAssets(card).length >= 3
  } catch (error) {
    if (!(error instanceof ModelFileError)) throw error
    return /^x\.gguf: ./.test(error.message)
  }
}

const reshape = (index: number, sizes: number[]) => (tensors: TensorInfo[]) =>
  tensors.map((tensor, place) => (place === index ? Object.assign(tensor, { shape: sizes }) : tensor))

test('any metadata', () => {
  assert(
    property(constantFrom(...keys), value, (key, change) => {
      expect(isHandled(() => tinyGguf({ [key]: change }))).toBe(true)
    }),
    { numRuns: 1500 },
  )
})

test('any shape of any tensor', () => {
  assert(
    property(tensorIndex, shape, (index, sizes) => {
      expect(isHandled(() => tinyGguf({}, reshape(index, sizes)))).toBe(true)
    }),
    { numRuns: 1000 },
  )
})
