/**
 * What a variant takes beside its weights, before anything is loaded and for backends that this build or machine may not
 * have. So it states the native layouts a second time; test/integration/estimates.property.test.ts holds the two together.
 */
import { KV_UNIT_BYTES, type KvCacheDtype, type ModelSpec, type Precision } from '../native.js'
import { keptHeadDim } from '../registry/index.js'

const FLOAT_BYTES = 4
const HALF_BYTES = 2
/** Of a key's or value's element, and of the scale of a head's row. */
const KV_BYTES: Readonly<Record<KvCacheDtype, { element: number; scale: number }>> = {
  fp16: { element: 2, scale: 0 },
  fp8: { element: 1, scale: 2 },
  int8: { element: 1, scale: 2 },
}
/** Rows that go through the head at a time. */
const LOGIT_ROWS = 64
/** Thread stacks, sampling state, what attention splits need, and the rounding of the rest. */
const FIXED_BYTES = 16 * 2 ** 20
/** On a GPU: parts of products (two tiles for each of up to 200 multiprocessors), a step's arrays, allocations' ends. */
const CUDA_FIXED_BYTES = 80 * 2 ** 20
/** Most that quantized matrices turned to halves for a prefill take there (native/cuda/matmul.h). */
const CUDA_WIDENED_BYTES = 256 * 2 ** 20
/** Tokens that a prefill's inputs are padded to. */
const CUDA_TOKENS = 256
/** Parts that one sequence's attention may be split into there. */
const CUDA_SPLITS = 16

/** A mask of a sampled row: a bit a token, in whole words (native/ops/sample.h). */
const MASK_WORD_BYTES = 4
const MASK_BITS = 8 * MASK_WORD_BYTES

/** Rows that activations are quantized in together on a CPU (native/cpu/matmul_kernels.h). */
const ROW_BUNDLE = 8

/** What a workspace's size depends on beside the model. */
export interface StepLimits {
  maxBatchTokens: number
  maxSlots: number
}

/** Bytes of one KV block of a model: keys and values of all layers, in whole units (native/ops/kv_layout.h). */
export function kvBlockBytes(
  spec: ModelSpec,
  blockSize: number,
  kind: 'cpu' | 'cuda' = 'cpu',
  dtype: KvCacheDtype = 'fp16',
): number {
  const headDim = keptHeadDim(kind, spec.headDim)
  const { element, scale } = KV_BYTES[dtype]
  const bytes = spec.numLayers * 2 * spec.numKvHeads * blockSize * (headDim * element + scale)
  return Math.ceil(bytes / KV_UNIT_BYTES) * KV_UNIT_BYTES
}

/** Bytes of a variant's workspace, from above, for planning; once loaded NativeModel.workspaceBytes counts. */
export function estimateWorkspaceBytes(
  spec: ModelSpec,
  limits: StepLimits,
  precision: Precision,
  kind: 'cpu' | 'cuda' = 'cpu',
): number {
  return kind === 'cpu' ? cpuWorkspaceBytes(spec, limits.maxBatchTokens, precision) : cudaWorkspaceBytes(spec, limits)
}

/** The stretches of native/model/cpu_workspace.cpp. */
function cpuWorkspaceBytes(spec: ModelSpec, maxBatchTokens: number, precision: Precision): number {
  const headDim = keptHeadDim('cpu', spec.headDim)
  const attention = (3 * spec.numHeads + 2 * spec.numKvHeads) * headDim
  const rotary = spec.ropes.reduce((sum, { table }) => sum + 2 * table.invFreq.length, 0)
  const rows = Math.min(LOGIT_ROWS, maxBatchTokens)
  const always = maxBatchTokens * (3 * spec.hiddenSize + rotary) + rows * spec.vocabSize
  const perToken = Math.max(attention, 3 * spec.intermediateSize)
  const inTurns = Math.max(maxBatchTokens * perToken, 2 * rows * spec.hiddenSize)
  const quantized = precision === 'fp16' ? 0 : quantizedBytes(spec, maxBatchTokens)
  return (always + inTurns) * FLOAT_BYTES + quantized + FIXED_BYTES
}

/** A batch's inputs of a product as codes of two bytes, with three figures for each 32 (native/cpu/matmul.cpp). */
function quantizedBytes({ hiddenSize, intermediateSize, numHeads, headDim }: ModelSpec, tokens: number): number {
  const widest = Math.max(hiddenSize, intermediateSize, numHeads * keptHeadDim('cpu', headDim))
  const blocks = Math.ceil(widest / 32)
  return Math.ceil(tokens / ROW_BUNDLE) * ROW_BUNDLE * blocks * (2 * 32 + 3 * FLOAT_BYTES)
}

/** The buffers of native/cuda/transformer.cu and model.cu. */
function cudaWorkspaceBytes(spec: ModelSpec, { maxBatchTokens, maxSlots }: StepLimits): number {
  const headDim = keptHeadDim('cuda', spec.headDim)
  const { hiddenSize, vocabSize, intermediateSize } = spec
  const heads = spec.numHeads * headDim
  const rows = Math.min(maxBatchTokens, Math.max(LOGIT_ROWS, maxSlots))
  const halves = (spec.postNorms ? 3 : 1) * hiddenSize + 3 * heads + 2 * spec.numKvHeads * headDim + intermediateSize
  const perToken = hiddenSize * FLOAT_BYTES + (halves + Math.max(hiddenSize, heads, intermediateSize)) * HALF_BYTES
  const attention = spec.numHeads * CUDA_SPLITS * (headDim + 2)
  const perRow = hiddenSize + 2 * vocabSize + attention
  const widest = Math.max(2 * intermediateSize, heads + 2 * spec.numKvHeads * headDim)
  const widened = Math.min(CUDA_WIDENED_BYTES, widest * hiddenSize * HALF_BYTES)
  const perSlot = vocabSize * HALF_BYTES + Math.ceil(vocabSize / MASK_BITS) * MASK_WORD_BYTES
  const fixed = widened + CUDA_FIXED_BYTES
  return (maxBatchTokens + CUDA_TOKENS) * perToken + rows * perRow * FLOAT_BYTES + maxSlots * perSlot + fixed
}
