import { describe, expect, test } from 'vitest'
import { parseHfConfig } from '../../engine/registry/hf-config.js'
import { ModelFileError } from '../../engine/registry/index.js'
import { ropeLengthLimit, ropeTable, type RopeSettings } from '../../engine/registry/rope.js'

const base = {
  model_type: 'llama',
  vocab_size: 32,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 6,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 128,
  rms_norm_eps: 1e-5,
}
const parse = (changes: Record<string, unknown>) => parseHfConfig('config.json', { ...base, ...changes })
const spec = (changes: Record<string, unknown>) => parse(changes).spec

/** "code: message" of what a config throws. */
function fault(changes: Record<string, unknown>): string {
  try {
    parse(changes)
    return 'accepted'
  } catch (error) {
    if (!(error instanceof ModelFileError)) throw error
    return `${error.code}: ${error.message}`
  }
}

describe('families', () => {
  test('llama: neutral settings', () => {
    expect(spec({})).toMatchObject({
      headDim: 16,
      attentionScale: 0.25,
      activation: 'silu',
      windows: new Int32Array(6),
      layerRopes: new Int32Array(6),
      normWeightOffset: 0,
      embeddingScale: 1,
      attentionSoftcap: 0,
      finalSoftcap: 0,
      postNorms: false,
      ropeInterleaved: false,
    })
    expect(parse({})).toMatchObject({ tied: false, contextLength: 128 })
    expect(spec({ sliding_window: 32 }).windows).toEqual(new Int32Array(6))
  })

  test('mistral: every layer has the window, 4096 where the file has none, off for null', () => {
    const windows = (changes: object) => new Set(spec({ model_type: 'mistral', ...changes }).windows)
    expect(windows({ sliding_window: 32 })).toEqual(new Set([32]))
    expect(windows({})).toEqual(new Set([4096]))
    expect(windows({ sliding_window: null })).toEqual(new Set([0]))
  })

  test('qwen2 and qwen3: the window must be switched on and starts at a layer, or by layer types', () => {
    const qwen = { model_type: 'qwen2', sliding_window: 32 }
    expect([...spec(qwen).windows]).toEqual([0, 0, 0, 0, 0, 0])
    expect([...spec({ ...qwen, use_sliding_window: true, max_window_layers: 4 }).windows]).toEqual([0, 0, 0, 0, 32, 32])
    const layerTypes = ['full', 'sliding', 'full', 'sliding', 'full', 'full'].map((kind) => `${kind}_attention`)
    const typed = { ...qwen, use_sliding_window: true, layer_types: layerTypes }
    expect([...spec(typed).windows]).toEqual([0, 32, 0, 32, 0, 0])
    expect(spec({ model_type: 'qwen3' }).headDim).toBe(128)
  })

  test('smollm3: every fourth layer does not rotate, or a list says which; tied, base 2e6', () => {
    const smollm3 = { model_type: 'smollm3' }
    expect([...spec(smollm3).layerRopes]).toEqual([0, 0, 0, -1, 0, 0])
    expect([...spec({ ...smollm3, no_rope_layers: [0, 1, 1, 0, 1, 1] }).layerRopes]).toEqual([-1, 0, 0, -1, 0, 0])
    expect([...spec({ ...smollm3, use_sliding_window: true, sliding_window: 8 }).windows]).toEqual([0, 0, 0, 8, 0, 0])
    expect(spec(smollm3).ropes[0]?.settings.theta).toBe(2_000_000)
    expect(parse(smollm3).tied).toBe(true)
  })

  test('gemma2: norms, scales, soft caps and alternating windows', () => {
    const gemma2 = { model_type: 'gemma2', head_dim: 16, query_pre_attn_scalar: 144, sliding_window: 8 }
    expect(spec(gemma2)).toMatchObject({
      activation: 'gelu_tanh',
      normWeightOffset: 1,
      embeddingScale: 8,
      attentionScale: 1 / 12,
      attentionSoftcap: 50,
      finalSoftcap: 30,
      postNorms: true,
      windows: Int32Array.of(8, 0, 8, 0, 8, 0),
    })
    expect(spec({ ...gemma2, attn_logit_softcapping: null }).attentionSoftcap).toBe(0)
    expect(parse(gemma2).tied).toBe(true)
  })

  test.each([
    [
      'transformers 4',
      { rope_theta: 1e6, rope_local_base_freq: 1e4, rope_scaling: { rope_type: 'linear', factor: 8 } },
    ],
    [
      'transformers 5',
      {
        rope_parameters: {
          full_attention: { rope_type: 'linear', factor: 8, rope_theta: 1e6 },
          sliding_attention: { rope_type: 'default', rope_theta: 1e4 },
        },
      },
    ],
  ])('gemma3_text, %s: two rotary tables, five windowed layers in six', (_, rope) => {
    const gemma3 = spec({ model_type: 'gemma3_text', head_dim: 16, sliding_window: 8, ...rope })
    expect(gemma3).toMatchObject({
      attentionSoftcap: 0,
      finalSoftcap: 0,
      windows: Int32Array.of(8, 8, 8, 8, 8, 0),
      layerRopes: Int32Array.of(1, 1, 1, 1, 1, 0),
    })
    expect(gemma3.ropes.map(({ settings }) => [settings.theta, settings.scaling.rope_type])).toEqual([
      [1e6, 'linear'],
      [1e4, 'default'],
    ])
  })

  test('phi3: part of a head rotates; longrope under its three names', () => {
    const factors = (value: number) => Array.from({ length: 6 }, () => value)
    const phi3 = { model_type: 'phi3', partial_rotary_factor: 0.75, original_max_position_embeddings: 32 }
    for (const type of ['longrope', 'su', 'yarn']) {
      const { ropes } = spec({ ...phi3, rope_scaling: { type, short_factor: factors(1), long_factor: factors(2) } })
      const [rope] = ropes
      expect(rope?.settings).toMatchObject({ rotaryDim: 12, scaling: { rope_type: 'longrope' } })
      expect(rope?.table.scale).toBeCloseTo(Math.sqrt(1 + Math.log(4) / Math.log(32)))
    }
  })

  test.each<[string, Record<string, unknown>, string]>([
    [
      'unknown family',
      { model_type: 'mamba' },
      'unsupported: config.json: model_type "mamba" is not supported (llama, mistral, qwen2, qwen3, smollm3, gemma2, gemma3_text, phi3 are)',
    ],
    [
      'prototype as family',
      { model_type: 'constructor' },
      'unsupported: config.json: model_type "constructor" is not supported (llama, mistral, qwen2, qwen3, smollm3, gemma2, gemma3_text, phi3 are)',
    ],
    [
      'classifier',
      { architectures: ['LlamaForSequenceClassification'] },
      'unsupported: config.json: architecture "LlamaForSequenceClassification" is not supported (language models, ...ForCausalLM, are)',
    ],
    ['activation', { hidden_act: 'relu' }, 'unsupported: config.json: hidden_act "relu" is not supported (silu is)'],
    ['experts', { num_local_experts: 8 }, 'unsupported: config.json: num_local_experts 8 is not supported'],
    [
      'bidirectional',
      { model_type: 'gemma3_text', use_bidirectional_attention: true },
      'unsupported: config.json: use_bidirectional_attention true is not supported',
    ],
    [
      'bias',
      { model_type: 'mistral', attention_bias: true },
      'unsupported: config.json: attention_bias is not supported with mistral',
    ],
    [
      'soft cap',
      { final_logit_softcapping: 30 },
      'unsupported: config.json: final_logit_softcapping is not supported with llama',
    ],
    [
      'layer types',
      { layer_types: ['full_attention'] },
      'invalid_file: config.json: layer_types has 1 entries for 6 layers',
    ],
    [
      'rope by layer type',
      { rope_parameters: { full_attention: {} } },
      'unsupported: config.json: rope_parameters by layer type are not supported with llama',
    ],
    [
      'flat rope',
      { model_type: 'gemma3_text', rope_parameters: { rope_type: 'default' } },
      'unsupported: config.json: rope_parameters of gemma3_text must be by layer type',
    ],
    [
      'longrope factors',
      { rope_scaling: { type: 'longrope', short_factor: [1], long_factor: [1] } },
      'invalid_file: config.json: rope: longrope has 1 factors for 8 frequencies',
    ],
    [
      'rotated part',
      { partial_rotary_factor: 0.1 },
      'invalid_file: config.json: partial_rotary_factor 0.1 gives 1 rotated values of 16',
    ],
  ])('%s is refused by name', (_, changes, message) => {
    expect(fault(changes)).toBe(message)
  })
})

describe('rotary tables by prompt length', () => {
  const of = (scaling: RopeSettings['scaling']): RopeSettings => ({
    scaling,
    theta: 10_000,
    rotaryDim: 8,
    maxPositionEmbeddings: 64,
  })

  test('dynamic: the plain table up to the trained length, then a base of its own for each length', () => {
    const settings = of({ rope_type: 'dynamic', factor: 4 })
    expect(ropeLengthLimit(settings)).toBe(64)
    expect(ropeTable(settings, 64)).toEqual(ropeTable(of({ rope_type: 'default' })))
    // 10000 * (4 * 200 / 64 - 3) ** (8 / 6), then its power -2/8.
    expect(ropeTable(settings, 200).invFreq[1]).toBeCloseTo((10_000 * 9.5 ** (8 / 6)) ** -0.25, 6)
  })

  test('longrope: two tables', () => {
    const settings = of({
      rope_type: 'longrope',
      short_factor: [1, 1, 1, 1],
      long_factor: [2, 2, 2, 2],
      original_max_position_embeddings: 32,
    })
    expect(ropeLengthLimit(settings)).toBe(32)
    expect([...ropeTable(settings, 33).invFreq]).toEqual([...ropeTable(settings, 32).invFreq].map((f) => f / 2))
  })

  test('the others have one', () => {
    expect(ropeLengthLimit(of({ rope_type: 'yarn', factor: 4 }))).toBe(Infinity)
  })
})
