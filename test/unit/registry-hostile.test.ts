/** Malformed checkpoints: a specific error each, at once, without memory for what they claim. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { ModelFileError, readModelCard } from '../../engine/registry/index.js'
import { readSafetensors } from '../../engine/registry/safetensors.js'

const root = fileURLToPath(new URL('../fixtures/hostile/', import.meta.url))

const CASES: [path: string, code: ModelFileError['code'], reason: string][] = [
  ['safetensors/empty.safetensors', 'invalid_file', '0 bytes is too short for a safetensors file'],
  ['safetensors/short_7_bytes.safetensors', 'invalid_file', '7 bytes is too short for a safetensors file'],
  [
    'safetensors/header_longer_than_file.safetensors',
    'invalid_file',
    "header length 1003 exceeds the file's 134 bytes",
  ],
  ['safetensors/header_100MB_claim.safetensors', 'invalid_file', 'header length 100000003 exceeds 100000000'],
  ['safetensors/header_u64_max.safetensors', 'invalid_file', 'header length 18446744073709551612 exceeds 100000000'],
  ['safetensors/header_zero.safetensors', 'invalid_file', 'the header is not JSON: Unexpected end of JSON input'],
  [
    'safetensors/header_not_json.safetensors',
    'invalid_file',
    "the header is not JSON: Expected property name or '}' in JSON",
  ],
  [
    'safetensors/header_bad_utf8.safetensors',
    'invalid_file',
    'the header is not JSON: The encoded data was not valid for encoding utf-8',
  ],
  ['safetensors/header_is_array.safetensors', 'invalid_file', 'the header is not a JSON object'],
  [
    'safetensors/header_trailing_garbage.safetensors',
    'invalid_file',
    'the header is not JSON: Unexpected non-whitespace character after JSON',
  ],
  ['safetensors/deep_nesting.safetensors', 'invalid_file', 'the header is nested more than 64 deep'],
  [
    'safetensors/offset_negative.safetensors',
    'invalid_file',
    'tensor "a": data_offsets.0: Too small: expected number to be >=0',
  ],
  ['safetensors/offset_reversed.safetensors', 'invalid_file', 'tensor "a": ends at 0 before it begins at 16'],
  ['safetensors/offset_past_end.safetensors', 'invalid_file', 'tensor "a": ends at 67, past the 64 bytes of data'],
  [
    'safetensors/offset_overflow.safetensors',
    'invalid_file',
    'tensor "a": data_offsets.0: Too big: expected int to be <=9007199254740991',
  ],
  [
    'safetensors/offset_float.safetensors',
    'invalid_file',
    'tensor "a": data_offsets.0: Invalid input: expected int, received number',
  ],
  ['safetensors/offset_overlap.safetensors', 'invalid_file', 'tensor "b": overlaps the tensor before it'],
  ['safetensors/offset_hole.safetensors', 'invalid_file', 'tensor "b": leaves 16 bytes unused before it'],
  ['safetensors/offset_hole_at_end.safetensors', 'invalid_file', '48 bytes after the last tensor'],
  ['safetensors/size_mismatch.safetensors', 'invalid_file', 'tensor "a": F32 [5] takes 20 bytes, not 16'],
  ['safetensors/dtype_mismatch.safetensors', 'invalid_file', 'tensor "a": F16 [4] takes 8 bytes, not 16'],
  ['safetensors/dtype_unknown.safetensors', 'invalid_file', 'tensor "a": unknown dtype F12'],
  [
    'safetensors/shape_negative.safetensors',
    'invalid_file',
    'tensor "a": shape.0: Too small: expected number to be >=0',
  ],
  [
    'safetensors/shape_overflow.safetensors',
    'invalid_file',
    'tensor "a": F32 [8589934592, 2147483651, 4] takes 295147905591669686272 bytes, not 16',
  ],
  [
    'safetensors/shape_huge.safetensors',
    'invalid_file',
    'tensor "a": ends at 4398046511104, past the 64 bytes of data',
  ],
  ['safetensors/duplicate_keys.safetensors', 'invalid_file', 'tensor "a": leaves 16 bytes unused before it'],
  [
    'safetensors/missing_offsets.safetensors',
    'invalid_file',
    'tensor "a": data_offsets: Invalid input: expected tuple, received undefined',
  ],
  ['safetensors/metadata_not_strings.safetensors', 'invalid_file', '__metadata__ must map strings to strings'],
  ['safetensors/truncated_body.safetensors', 'invalid_file', 'tensor "a": ends at 16, past the 11 bytes of data'],
  ['config/not_json', 'invalid_file', "the file is not JSON: Expected property name or '}' in JSON"],
  ['config/is_array', 'invalid_file', 'the file is not a JSON object'],
  ['config/deep', 'invalid_file', 'the file is nested more than 64 deep'],
  ['config/hidden_huge', 'invalid_file', 'hidden_size: Too big: expected number to be <=131072'],
  ['config/hidden_negative', 'invalid_file', 'hidden_size: Too small: expected number to be >=1'],
  ['config/hidden_zero', 'invalid_file', 'hidden_size: Too small: expected number to be >=1'],
  ['config/hidden_float', 'invalid_file', 'hidden_size: Invalid input: expected int, received number'],
  ['config/hidden_string', 'invalid_file', 'hidden_size: Invalid input: expected number, received string'],
  ['config/hidden_null', 'invalid_file', 'hidden_size: Invalid input: expected number, received null'],
  ['config/layers_huge', 'invalid_file', 'num_hidden_layers: Too big: expected number to be <=1024'],
  ['config/heads_zero', 'invalid_file', 'num_attention_heads: Too small: expected number to be >=1'],
  ['config/kv_not_dividing', 'invalid_file', 'num_key_value_heads 3 does not divide num_attention_heads 4'],
  ['config/kv_more_than_heads', 'invalid_file', 'num_key_value_heads 8 does not divide num_attention_heads 2'],
  ['config/head_dim_odd', 'invalid_file', 'head_dim 33 is not an even integer'],
  ['config/vocab_huge', 'invalid_file', 'vocab_size: Too big: expected number to be <=16777216'],
  ['config/context_huge', 'invalid_file', 'max_position_embeddings: Too big: expected number to be <=2147483647'],
  ['config/rope_unknown', 'unsupported', 'rope_type "spiral" is not supported'],
  ['config/rope_factor_zero', 'invalid_file', 'rope_scaling.factor: Too small: expected number to be >=1'],
  [
    'config/rope_theta_nan',
    'invalid_file',
    'the file is not JSON: Unexpected token \'N\', ..."e_theta": NaN, "tie_"... is not valid JSON',
  ],
  ['config/eps_negative', 'invalid_file', 'rms_norm_eps: Too small: expected number to be >0'],
  ['config/arch_unknown', 'unsupported', 'model_type "evil" is not supported'],
  ['config/auto_map_code', 'unsupported', 'model_type "custom" is not supported'],
  ['config/quant_method_unknown', 'unsupported', 'quantization_config: quant_method "quantum" is not supported'],
  ['config/quant_method_missing', 'invalid_file', 'quantization_config: quant_method is missing'],
  ['config/quant_group_zero', 'invalid_file', 'quantization_config.group_size: expected -1 or 8..65536'],
  ['config/quant_group_minus_2', 'invalid_file', 'quantization_config.group_size: expected -1 or 8..65536'],
  [
    'config/quant_group_not_dividing',
    'invalid_file',
    'model.layers.0.self_attn.q_proj: group_size 48 does not divide its 64 inputs',
  ],
  ['config/quant_bits_3_5', 'invalid_file', 'quantization_config.bits: expected 2, 3, 4 or 8'],
  ['config/quant_bits_0', 'invalid_file', 'quantization_config.bits: expected 2, 3, 4 or 8'],
  ['config/quant_bits_33', 'invalid_file', 'quantization_config.bits: expected 4, or 8 with version gemm'],
  ['config/quant_bits_string', 'invalid_file', 'quantization_config.bits: expected 2, 3, 4 or 8'],
  [
    'config/quant_awq_version',
    'invalid_file',
    'quantization_config.version: Invalid option: expected one of "gemm"|"gemv"|"gemv_fast"',
  ],
  [
    'config/quant_gptq_format',
    'invalid_file',
    'quantization_config.checkpoint_format: Invalid option: expected one of "gptq"|"gptq_v2"',
  ],
  ['config/quant_ct_format', 'invalid_file', 'quantization_config.config_groups: is empty'],
  [
    'config/quant_ct_groups_missing',
    'invalid_file',
    'quantization_config.config_groups: Invalid input: expected record, received undefined',
  ],
  ['index/parent_path', 'invalid_file', 'weight_map.a: expected the name of a .safetensors file beside the index'],
  [
    'index/parent_path_inside',
    'invalid_file',
    'weight_map.a: expected the name of a .safetensors file beside the index',
  ],
  ['index/absolute_path', 'invalid_file', 'weight_map.a: expected the name of a .safetensors file beside the index'],
  ['index/backslash_path', 'invalid_file', 'weight_map.a: expected the name of a .safetensors file beside the index'],
  ['index/nul_path', 'invalid_file', 'weight_map.a: expected the name of a .safetensors file beside the index'],
  ['index/url', 'invalid_file', 'weight_map.a: expected the name of a .safetensors file beside the index'],
  ['index/missing_shard', 'invalid_file', 'model-00001-of-00001.safetensors is missing'],
  ['index/tensor_not_in_shard', 'invalid_file', 'tensor "zz" is not in s.safetensors'],
  ['index/map_not_object', 'invalid_file', 'weight_map: Invalid input: expected record, received array'],
  ['index/value_not_string', 'invalid_file', 'weight_map.a: Invalid input: expected string, received number'],
  ['gptq/g_idx_out_of_range', 'invalid_file', 'input 0 is in group'],
  ['gptq/g_idx_negative', 'invalid_file', 'is in group -'],
  [
    'gptq/g_idx_short',
    'invalid_file',
    'tensor "model.layers.0.self_attn.q_proj.g_idx" has shape [63]; the configuration says [64]',
  ],
  ['gptq/g_idx_int_max', 'invalid_file', 'is in group 2147483647 of 2'],
  [
    'gptq/scales_groups',
    'invalid_file',
    'tensor "model.layers.0.self_attn.q_proj.scales" has shape [1, 64]; the configuration says [2, 64]',
  ],
  [
    'gptq/qweight_rows',
    'invalid_file',
    'tensor "model.layers.0.self_attn.q_proj.qweight" has shape [7, 64]; the configuration says [8, 64]',
  ],
  [
    'gptq/qzeros_columns',
    'invalid_file',
    'tensor "model.layers.0.self_attn.q_proj.qzeros" has shape [2, 4]; the configuration says [2, 8]',
  ],
  [
    'gptq/scales_dtype',
    'invalid_file',
    'tensor "model.layers.0.self_attn.q_proj.scales" has type i32; expected f16 or bf16 or f32',
  ],
]

/** Not seen in headers and configuration, or not an error at all. */
const ELSEWHERE = ['safetensors/name_proto.safetensors', 'config/quant_dynamic_regex', 'gptq/scales_nan']

function fault(path: string): unknown {
  try {
    return readModelCard(root + path, () => {
      throw new Error('no GGUF is expected here')
    })
  } catch (error) {
    return error
  }
}

test.each(CASES)('%s', (path, code, reason) => {
  const started = performance.now()
  const before = process.memoryUsage.rss()
  const error = fault(path)
  if (!(error instanceof ModelFileError)) throw new Error(`${path}: ${String(error)}`)
  expect(error.code).toBe(code)
  expect(error.message.startsWith(root + path)).toBe(true)
  expect(error.message).toContain(reason)
  expect(performance.now() - started).toBeLessThan(1000)
  expect(process.memoryUsage.rss() - before).toBeLessThan(64 * 2 ** 20)
})

test('a pattern that backtracks for ever is answered within a second', () => {
  const started = performance.now()
  expect(fault('config/quant_dynamic_regex')).toBeInstanceOf(ModelFileError)
  expect(performance.now() - started).toBeLessThan(2000)
})

test('a tensor named __proto__ is a tensor', () => {
  const { tensors } = readSafetensors(`${root}safetensors/name_proto.safetensors`)
  expect(tensors.map(({ name }) => name)).toEqual(['__proto__'])
})

test('every case of the index is here or in the tests of GGUF', () => {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the fixture's own shape
  const index = JSON.parse(readFileSync(`${root}index.json`, 'utf8')) as { path: string }[]
  const others = index.map(({ path }) => path).filter((path) => !path.startsWith('gguf/'))
  expect([...CASES.map(([path]) => path), ...ELSEWHERE].toSorted()).toEqual(others.toSorted())
})
