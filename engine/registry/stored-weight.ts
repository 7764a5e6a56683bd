/** Helpers for the weights that the native loader is told of. */
import type { TensorRef, WeightSource } from '../native.js'

export type { Storage, TensorRef, TensorRole, WeightSource as StoredWeight } from '../native.js'

/** A float matrix or vector, or GGUF blocks. */
export function plainWeight(slot: string, shape: number[], values: TensorRef): WeightSource {
  return { slot, shape, storage: { method: 'plain' }, tensors: { values } }
}

/** Bytes in the model's files. */
export function storedBytes({ tensors }: WeightSource): number {
  return Object.values(tensors).reduce((sum, { bytes }) => sum + bytes, 0)
}

/** Number of logical values. */
export function elementsOf({ shape }: { shape: readonly number[] }): number {
  return shape.reduce((product, size) => product * size, 1)
}
