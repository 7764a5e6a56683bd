import { expect, test } from 'vitest'
import type { ModelSpec } from '../../engine/native.js'
import { kvBlockBytes } from '../../engine/residency/estimate.js'

const spec = { numLayers: 2, numKvHeads: 3, headDim: 80 } as ModelSpec

// The same table as check_block_bytes() of native/test/attention_test.cpp; heads of 80 are kept as 96 on a GPU.
test.each([
  { kind: 'cpu', dtype: 'fp16', bytes: 30_720 },
  { kind: 'cpu', dtype: 'fp8', bytes: 15_872 },
  { kind: 'cpu', dtype: 'int8', bytes: 15_872 },
  { kind: 'cuda', dtype: 'fp16', bytes: 36_864 },
  { kind: 'cuda', dtype: 'fp8', bytes: 18_944 },
  { kind: 'cuda', dtype: 'int8', bytes: 18_944 },
] as const)('a KV block of $dtype on $kind has $bytes bytes', ({ kind, dtype, bytes }) => {
  expect(kvBlockBytes(spec, 16, kind, dtype)).toBe(bytes)
})
