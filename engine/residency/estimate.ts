import { KV_UNIT_BYTES, type ModelSpec } from '../native.js'

const FLOAT_BYTES = 4
const KV_ELEMENT_BYTES = 2
/** Rows that go through the head at a time. */
const LOGIT_ROWS = 64
/** Packed activations, thread stacks, sampling state. */
const FIXED_BYTES = 16 * 2 ** 20

/** Heads are padded to a multiple of this (native/model/head_padding.h). */
const HEAD_MULTIPLE = 16

/** Bytes of one KV block of a model: keys and values of all layers in fp16, in whole units (native/ops/kv_layout.h). */
export function kvBlockBytes(spec: ModelSpec, blockSize: number): number {
  const headDim = Math.ceil(spec.headDim / HEAD_MULTIPLE) * HEAD_MULTIPLE
  const bytes = spec.numLayers * 2 * spec.numKvHeads * blockSize * headDim * KV_ELEMENT_BYTES
  return Math.ceil(bytes / KV_UNIT_BYTES) * KV_UNIT_BYTES
}

/** Bytes of a variant's workspace, from above, for planning; once loaded NativeModel.workspaceBytes counts. */
export function estimateWorkspaceBytes(spec: ModelSpec, maxBatchTokens: number): number {
  const heads = spec.numHeads * spec.headDim
  const attention = 3 * heads + 2 * spec.numKvHeads * spec.headDim
  const rotary = spec.ropes.reduce((sum, { table }) => sum + table.invFreq.length, 0)
  const perToken = 3 * spec.hiddenSize + 2 * rotary + Math.max(attention, 3 * spec.intermediateSize)
  const head = LOGIT_ROWS * (spec.vocabSize + 2 * spec.hiddenSize)
  return (maxBatchTokens * perToken + head) * FLOAT_BYTES + FIXED_BYTES
}
