/** Cards of checkpoints written by the tools of their formats. */
import { copyFileSync, cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { modelAssets, readModelCard, storageMethod } from '../../engine/registry/index.js'
import type { Storage } from '../../engine/registry/stored-weight.js'
import { describeStorage } from '../../engine/registry/width.js'
import { GOLDEN, goldenCard, goldenFolder } from '../support/golden.js'
import { loadTextModel } from '../../gateway/text/model-text.js'

const scratch = mkdtempSync(join(tmpdir(), 'edgeshift-golden-'))
afterAll(() => rmSync(scratch, { recursive: true }))

const g = (size: number) => `groups of ${size}`

/** Rung, and how the matrices of the layers and the head are stored. */
const EXPECTED: Record<string, [precision: string, ...stored: string[]]> = {
  'awq/w4_g128': ['int4', `awq 4 bit gemm, ${g(128)}`],
  'awq/w4_g128_skip': ['int4', `awq 4 bit gemm, ${g(128)}`, 'f16'],
  'awq/w4_g128_skip_autoawq': ['int4', `awq 4 bit gemm, ${g(128)}`, 'f16'],
  'awq/w4_g32_bias': ['int4', `awq 4 bit gemm, ${g(32)}`],
  'awq/w4_g32_gemv_fast': ['int4', `awq 4 bit gemv_fast, ${g(32)}`],
  'awq/w4_g64': ['int4', `awq 4 bit gemm, ${g(64)}`],
  'awq/w4_g64_gemv': ['int4', `awq 4 bit gemv, ${g(64)}`],
  'compressed-tensors/fp8_dynamic': ['int8', 'compressed-tensors fp8'],
  'compressed-tensors/fp8_static': ['int8', 'compressed-tensors fp8'],
  'compressed-tensors/w4a16_g128_asym': ['int4', `compressed-tensors 4 bit, ${g(128)}, asymmetric`],
  'compressed-tensors/w4a16_g128_sym': ['int4', `compressed-tensors 4 bit, ${g(128)}`],
  'compressed-tensors/w4a16_g32_g_idx': ['int4', `compressed-tensors 4 bit, ${g(32)}`],
  'compressed-tensors/w4a16_g32_gptq_weight_order': ['int4', `compressed-tensors 4 bit, ${g(32)}`],
  'compressed-tensors/w8a16_channel': ['int8', 'compressed-tensors 8 bit, one group'],
  'compressed-tensors/w8a8_int8_dynamic': ['int8', 'compressed-tensors int8, one group'],
  'families/gemma2': ['fp16', 'f16'],
  'families/gemma3_text': ['fp16', 'f16'],
  'families/phi3_longrope': ['fp16', 'f16'],
  'families/phi3_sliding': ['fp16', 'f16'],
  'families/smollm3': ['fp16', 'f16'],
  'fp8/block128': ['int8', 'fp8, blocks of 128 x 128'],
  'gptq/w2_g32_sym': ['int4', `gptq 2 bit, ${g(32)}`],
  'gptq/w3_g32_asym_v2': ['int4', `gptq 3 bit, ${g(32)}`],
  'gptq/w4_channel_sym': ['int4', 'gptq 4 bit, one group'],
  'gptq/w4_channel_sym_legacy': ['int4', 'gptq 4 bit, one group'],
  'gptq/w4_dynamic_mixed': ['int8', `gptq 4 bit, ${g(128)}`, 'f16', `gptq 8 bit, ${g(128)}`, `gptq 8 bit, ${g(64)}`],
  'gptq/w4_g128_asym_v2': ['int4', `gptq 4 bit, ${g(128)}`],
  'gptq/w4_g128_sym': ['int4', `gptq 4 bit, ${g(128)}`],
  'gptq/w4_g128_sym_actorder': ['int4', `gptq 4 bit, ${g(128)}, act-order`],
  'gptq/w4_g32_asym_actorder_v2': ['int4', `gptq 4 bit, ${g(32)}, act-order`],
  'gptq/w4_g64_asym': ['int4', `gptq 4 bit, ${g(64)}`],
  'gptq/w4_g64_asym_zero0': ['int4', `gptq 4 bit, ${g(64)}`],
  'gptq/w4_g64_asym_zero0_v2': ['int4', `gptq 4 bit, ${g(64)}`],
  'gptq/w4_g64_lm_head': ['int4', `gptq 4 bit, ${g(64)}`, `gptq 8 bit, ${g(32)}`],
  'gptq/w8_channel_asym_actorder': ['int8', 'gptq 8 bit, one group, act-order'],
  'gptq/w8_g128_asym_zero0': ['int8', `gptq 8 bit, ${g(128)}`],
  'gptq/w8_g128_sym': ['int8', `gptq 8 bit, ${g(128)}`],
  'gptq/w8_g64_asym_v2_bias': ['int8', `gptq 8 bit, ${g(64)}`],
  'plain/llama_bf16_sharded': ['fp16', 'bf16'],
  'plain/llama_fp16': ['fp16', 'f16'],
  'plain/llama_fp16_mha_bias': ['fp16', 'f16'],
  'plain/llama_fp32_tied': ['fp16', 'f32'],
  'plain/llama_rope_dynamic': ['fp16', 'f16'],
  'plain/llama_rope_linear': ['fp16', 'f16'],
  'plain/llama_rope_llama3': ['fp16', 'f16'],
  'plain/llama_rope_yarn': ['fp16', 'f16'],
  'plain/mistral_sliding64': ['fp16', 'bf16'],
  'plain/qwen2': ['fp16', 'bf16'],
  'plain/qwen3': ['fp16', 'bf16'],
}

/** Tensors that a matrix may have, by method. */
const ROLES: Record<Storage['method'], string[]> = {
  plain: ['values'],
  gptq: ['codes,groupIndex,scales,zeroPoints'],
  awq: ['codes,scales,zeroPoints'],
  'pack-quantized': ['codes,scales', 'codes,scales,zeroPoints', 'codes,groupIndex,scales'],
  'int-quantized': ['codes,scales'],
  'float-quantized': ['codes,scales'],
}

test('every golden checkpoint is expected', () => {
  expect(Object.keys(EXPECTED).toSorted()).toEqual(GOLDEN)
})

describe.each(Object.entries(EXPECTED))('%s', (name, [precision, ...stored]) => {
  const card = goldenCard(name)
  const matrices = card.weights.filter(({ slot, shape }) => shape.length === 2 && slot !== 'embed')

  test('rung, method and storage of every matrix', () => {
    expect(card.precision).toBe(precision)
    expect(storageMethod(card)).toBe(/^(?:plain|families)\//.test(name) ? 'safetensors' : name.split('/')[0])
    expect([...new Set(matrices.map(describeStorage))].toSorted()).toEqual(stored.toSorted())
  })

  test('seven matrices a layer, each with the tensors of its method', () => {
    const inLayers = matrices.filter(({ slot }) => slot !== 'head')
    expect(inLayers).toHaveLength(7 * card.spec.numLayers)
    const wrong = matrices.filter(({ storage, tensors }) => {
      const roles = Object.keys(tensors).toSorted().join()
      return !ROLES[storage.method].includes(roles)
    })
    expect(wrong).toEqual([])
  })

  test('has a tokenizer that the gateway reads', async () => {
    const text = await loadTextModel(modelAssets(card), 0)
    const ids = await text.encode('Grüße, 42!', false)
    expect(text.decode(ids, false)).toBe('Grüße, 42!')
    expect(text.eosTokenIds).toEqual([1])
    await text.close()
  })
})

test('fp8 by blocks in the spelling of compressed-tensors', () => {
  const folder = join(scratch, 'fp8_block')
  cpSync(goldenFolder('fp8/block128'), folder, { recursive: true })
  const weights = join(folder, 'model.safetensors')
  const file = readFileSync(weights)
  const header = file.toString('latin1', 8, 8 + Number(file.readBigUInt64LE()))
  file.write(header.replaceAll('weight_scale_inv"', 'weight_scale"').padEnd(header.length), 8, 'latin1')
  writeFileSync(weights, file)
  const config = join(folder, 'config.json')
  const block = { num_bits: 8, type: 'float', symmetric: true, strategy: 'block', block_structure: [128, 128] }
  const quantization = {
    quant_method: 'compressed-tensors',
    format: 'float-quantized',
    config_groups: { group_0: { targets: ['Linear'], weights: block } },
    ignore: ['lm_head'],
  }
  const value: object = JSON.parse(readFileSync(config, 'utf8'))
  writeFileSync(config, JSON.stringify({ ...value, quantization_config: quantization }))
  const card = readModelCard(folder, () => {
    throw new Error('no GGUF is expected here')
  })
  const quantized = card.weights.filter(({ storage }) => storage.method !== 'plain')
  expect(new Set(quantized.map(describeStorage))).toEqual(new Set(['compressed-tensors fp8, blocks of 128 x 128']))
})

test.each(['linear', 'llama3', 'yarn', 'dynamic'])('rope %s: the same in the spelling of transformers 4', (kind) => {
  const name = `plain/llama_rope_${kind}`
  const folder = join(scratch, kind)
  cpSync(goldenFolder(name), folder, { recursive: true })
  copyFileSync(join(goldenFolder(name), '..', 'config_v4.json'), join(folder, 'config.json'))
  const old = readModelCard(folder, () => {
    throw new Error('no GGUF is expected here')
  })
  expect(old.spec).toEqual(goldenCard(name).spec)
})
