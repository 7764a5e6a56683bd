/** Helpers for the weights that the native loader is told of. */
import type { TensorRef, WeightSource } from '../native.js'

export type { Storage, TensorRef, TensorRole, WeightSource as StoredWeight } from '../native.js'

/** A float matrix or vector, or GGUF blocks. */
export function plainWeight(slot: string, shape: number[], values: TensorRef): WeightSource {
  return { slot, shape, storage: { method: 'plain' }, tensors: { values } }
}

/** The rows of a float matrix, vector or block matrix as weights of their own, in the order of the parts. */
export function splitRows(ref: TensorRef, parts: readonly { slot: string; rows: number }[]): WeightSource[] {
  const [rows = 0, ...rest] = ref.shape
  let offset = ref.offset
  return parts.map((part) => {
    const shape = [part.rows, ...rest]
    const bytes = (ref.bytes / rows) * part.rows
    const values = { file: ref.file, type: ref.type, offset, bytes, shape }
    offset += bytes
    return plainWeight(part.slot, shape, values)
  })
}

/** Bytes in the model's files. */
export function storedBytes({ tensors }: WeightSource): number {
  return Object.values(tensors).reduce((sum, { bytes }) => sum + bytes, 0)
}

/** Number of logical values. */
export function elementsOf({ shape }: { shape: readonly number[] }): number {
  return shape.reduce((product, size) => product * size, 1)
}
