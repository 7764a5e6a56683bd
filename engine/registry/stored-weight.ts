/** Where the weights of a model are and how they are stored: what the native loader is told. */

/** Bytes of one tensor, or of a range of its rows, in one of the model's files. */
export interface TensorRef {
  /** Index into the model's files. */
  file: number
  /** Absolute byte offset. */
  offset: number
  bytes: number
  /** Element or block type in lower case: f32, f16, bf16, f8_e4m3, i8, i16, i32, q4_0, ... */
  type: string
  /** Row-major, outermost first, in elements of `type`. */
  shape: number[]
}

/**
 * How a matrix is stored; layouts as in quantized-layout.ts. `groupSize`: inputs that share a scale, 0 = all.
 * plain: floats or GGUF blocks in `values`. The others keep their codes in `codes` (int-quantized and float-quantized
 * too) beside `scales` and, where the method has them, `zeroPoints` and `groupIndex`. `quantizedActivations`: the file
 * was made for activations quantized too. `actOrder`: input k is in group groupIndex[k]; otherwise in k div groupSize,
 * unless there is a groupIndex that says otherwise.
 */
export type Storage =
  | { method: 'plain' }
  | { method: 'gptq'; bits: 2 | 3 | 4 | 8; groupSize: number; zeroPointsMinusOne: boolean; actOrder: boolean }
  | { method: 'awq'; version: 'gemm' | 'gemv' | 'gemv_fast'; bits: 4; groupSize: number }
  | { method: 'pack-quantized'; bits: 4 | 8; groupSize: number; symmetric: boolean }
  | { method: 'int-quantized'; groupSize: number; quantizedActivations: boolean }
  | { method: 'float-quantized'; quantizedActivations: boolean }

/** A role that a tensor plays in a stored weight. */
export type TensorRole = 'values' | 'codes' | 'scales' | 'zeroPoints' | 'groupIndex'

/** One logical weight. */
export interface StoredWeight {
  /**
   * embed, final_norm, head (absent = tied to embed), and per layer i "layers.i." + attn_norm, q, k, v, o, q_bias,
   * k_bias, v_bias, o_bias, q_norm, k_norm, post_attn_norm (on the attention's output, before the residual), ffn_norm
   * (before the feed-forward), gate, up, down, gate_bias, up_bias, down_bias, post_ffn_norm. Where a quantized file
   * keeps q, k, v or gate, up as one matrix: qkv, gate_up (rows in this order), with qkv_bias, gate_up_bias.
   */
  slot: string
  /** Logical: [N] or [N, K] with N outputs and K inputs. */
  shape: number[]
  storage: Storage
  tensors: Partial<Record<TensorRole, TensorRef>>
}

/** A float matrix or vector, or GGUF blocks. */
export function plainWeight(slot: string, shape: number[], values: TensorRef): StoredWeight {
  return { slot, shape, storage: { method: 'plain' }, tensors: { values } }
}

/** Bytes in the model's files. */
export function storedBytes({ tensors }: StoredWeight): number {
  return Object.values(tensors).reduce((sum, { bytes }) => sum + bytes, 0)
}

/** Number of logical values. */
export function elementsOf({ shape }: { shape: readonly number[] }): number {
  return shape.reduce((product, size) => product * size, 1)
}
