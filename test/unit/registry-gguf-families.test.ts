import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import type { GgufFile, GgufValue, TensorInfo } from '../../engine/native.js'
import { type ModelCard, readModelCard } from '../../engine/registry/index.js'
import { tensor, tinyGguf } from '../support/tiny-gguf.js'

const folder = mkdtempSync(join(tmpdir(), 'edgeshift-gguf-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** The tiny llama under another architecture's keys, its layer `layers` times. */
function named(
  architecture: string,
  layers: number,
  extra: (layer: number) => TensorInfo[],
  changes: Record<string, GgufValue> = {},
): GgufFile {
  const { version, metadata, tensors } = tinyGguf({ 'general.architecture': architecture, 'llama.block_count': layers })
  const renamed = Object.entries(metadata).map(([key, value]) => [key.replace(/^llama\./, `${architecture}.`), value])
  const inLayers = Array.from({ length: layers }, (_, layer) => [
    ...tensors
      .filter(({ name }) => name.startsWith('blk.0.'))
      .map((info) => tensor(info.name.replace('blk.0.', `blk.${layer}.`), info.shape)),
    ...extra(layer),
  ])
  const outside = tensors.filter(({ name }) => !name.startsWith('blk.'))
  return {
    version,
    metadata: { ...Object.fromEntries(renamed), ...changes },
    tensors: [...outside, ...inLayers.flat()],
  }
}

const card = (file: GgufFile, path = 'x.gguf'): ModelCard => readModelCard(path, () => file)
const norms = (layer: number, ...names: string[]) => names.map((name) => tensor(`blk.${layer}.${name}.weight`, [32]))
const qkNorms = (layer: number) => [
  tensor(`blk.${layer}.attn_q_norm.weight`, [8]),
  tensor(`blk.${layer}.attn_k_norm.weight`, [8]),
]

test('qwen2 and qwen3: halves are rotated, not neighbours; norms on q and k', () => {
  expect(card(named('qwen2', 1, () => [])).spec.ropeInterleaved).toBe(false)
  const qwen3 = card(named('qwen3', 1, qkNorms))
  expect(qwen3.weights.map(({ slot }) => slot)).toContain('layers.0.q_norm')
  expect(() => card(named('qwen3', 1, () => []))).toThrow('tensor "blk.0.attn_q_norm.weight" is missing')
})

test('smollm3: every fourth layer does not rotate', () => {
  const { spec } = card(named('smollm3', 5, () => []))
  expect([...spec.layerRopes]).toEqual([0, 0, 0, -1, 0])
  expect(spec.ropeInterleaved).toBe(true)
})

test('gemma2: soft caps and window by default, alternating; the 1 is in the norm weights already', () => {
  const extra = (layer: number) => norms(layer, 'post_attention_norm', 'post_ffw_norm')
  const { spec, weights } = card(named('gemma2', 3, extra))
  expect(spec).toMatchObject({
    activation: 'gelu_tanh',
    attentionSoftcap: 50,
    finalSoftcap: 30,
    normWeightOffset: 0,
    postNorms: true,
    embeddingScale: Math.sqrt(32),
    windows: Int32Array.of(4096, 0, 4096),
    ropeInterleaved: false,
  })
  expect(weights.map(({ slot }) => slot)).toEqual(
    expect.arrayContaining(['layers.2.post_attn_norm', 'layers.2.ffn_norm', 'layers.2.post_ffn_norm']),
  )
})

test('gemma3: two bases, five windowed layers in six', () => {
  const extra = (layer: number) => [...norms(layer, 'post_attention_norm', 'post_ffw_norm'), ...qkNorms(layer)]
  const changes = { 'gemma3.attention.sliding_window': 16, 'gemma3.rope.freq_base': 1e6 }
  const { spec } = card(named('gemma3', 6, extra, changes))
  expect([...spec.windows]).toEqual([16, 16, 16, 16, 16, 0])
  expect([...spec.layerRopes]).toEqual([1, 1, 1, 1, 1, 0])
  expect(spec.ropes.map(({ settings }) => settings.theta)).toEqual([1e6, 10_000])
  expect(spec.attentionSoftcap).toBe(0)
})

test('phi3: fused projections by row ranges; longrope factors from tensors', () => {
  const path = join(folder, 'phi3.gguf')
  const floats = Buffer.alloc(32)
  for (let i = 0; i < 8; i++) floats.writeFloatLE(i < 4 ? 1 : 2, i * 4)
  writeFileSync(path, floats)
  const changes = { 'phi3.rope.scaling.original_context_length': 64, 'phi3.rope.scaling.attn_factor': 1.5 }
  const file = named('phi3', 1, () => [], changes)
  const fused = [
    { ...tensor('blk.0.attn_qkv.weight', [64, 32]), offset: 1000 },
    { ...tensor('blk.0.ffn_up.weight', [128, 32]), offset: 20_000 },
    tensor('rope_factors_short.weight', [4]),
    { ...tensor('rope_factors_long.weight', [4]), offset: 16 },
  ]
  const gone = /attn_[qkv]\.|ffn_(?:gate|up)\./
  const { spec, weights } = card(
    { ...file, tensors: [...file.tensors.filter(({ name }) => !gone.test(name)), ...fused] },
    path,
  )
  const places = weights.flatMap(({ slot, tensors: { values } }) =>
    values ? [[slot.slice(9), values.offset, values.bytes]] : [],
  )
  expect(places).toEqual(
    expect.arrayContaining([
      ['q', 1000, 4096],
      ['k', 5096, 2048],
      ['v', 7144, 2048],
      ['gate', 20_000, 8192],
      ['up', 28_192, 8192],
    ]),
  )
  const [rope] = spec.ropes
  expect(rope?.settings.scaling).toMatchObject({ rope_type: 'longrope', long_factor: [2, 2, 2, 2] })
  expect(rope?.table.scale).toBe(1.5)
})

test('yarn', () => {
  const changes = {
    'qwen2.rope.scaling.type': 'yarn',
    'qwen2.rope.scaling.factor': 4,
    'qwen2.rope.scaling.original_context_length': 32,
  }
  const { spec } = card(named('qwen2', 1, () => [], changes))
  expect(spec.ropes[0]?.settings.scaling).toEqual({
    rope_type: 'yarn',
    factor: 4,
    original_max_position_embeddings: 32,
  })
  expect(spec.ropes[0]?.table.scale).toBeCloseTo(0.1 * Math.log(4) + 1)
})
