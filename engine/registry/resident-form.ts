/** How the CPU backend keeps a stored matrix at a rung (native/model/cpu_weights.h says the rules). */
import type { Precision, WeightSource } from '../native.js'

/** Everything that a packed matrix's size depends on beside its shape. */
export interface ResidentForm {
  precision: Precision
  /** Inputs that share a scale; 0 for fp16. */
  group: number
  minimums: boolean
  /** Act-order: the order of the inputs is kept too. */
  ordered: boolean
}

/** Inputs that share a scale where a matrix is rounded to nearest. */
export const ROUNDING_GROUP = 32
const RANK: Readonly<Record<Precision, number>> = { fp16: 0, int8: 1, int4: 2 }
const FLOATS = new Set(['f32', 'f16', 'bf16'])
/** GGUF types that an int4 rung keeps in, or rounds to, 4 bits (native/quant/block_type.h). */
const INT4_TYPES = new Set('q4_0 q4_1 q4_k q2_k tq1_0 tq2_0 iq1_s iq1_m iq2_xxs iq2_xs iq2_s'.split(' '))
/** Kept with a minimum beside the scale also at 8 bits. */
const WITH_MINIMUM = new Set(['q4_1', 'q5_1', 'q4_k', 'q5_k'])

/** Whether codes of this width stay as they are at a rung. */
export const fits = (width: Precision, rung: Precision): boolean => RANK[width] >= RANK[rung]

/** The width that the file keeps a matrix in, as far as its headers tell. */
export function widthOf({ storage, shape, tensors }: WeightSource): Precision {
  switch (storage.method) {
    case 'plain': {
      const type = tensors.values?.type ?? ''
      if (FLOATS.has(type)) return 'fp16'
      return INT4_TYPES.has(type) ? 'int4' : 'int8'
    }
    case 'float-quantized':
      return 'fp16'
    default: {
      const whole = storage.groupSize % ROUNDING_GROUP === 0 || storage.groupSize >= (shape[1] ?? 0)
      if (!whole) return 'fp16'
      return storage.method === 'int-quantized' || storage.bits > 4 ? 'int8' : 'int4'
    }
  }
}

/** The form of a matrix that the backend keeps at this precision. */
export function residentForm(weight: WeightSource, precision: Precision): ResidentForm {
  const { storage, shape, tensors } = weight
  const rounded = { precision, group: ROUNDING_GROUP, minimums: precision === 'int4', ordered: false }
  if (precision === 'fp16') return { ...rounded, group: 0 }
  if (storage.method === 'plain')
    return { ...rounded, minimums: rounded.minimums || WITH_MINIMUM.has(tensors.values?.type ?? '') }
  if (storage.method === 'float-quantized' || !fits(widthOf(weight), precision)) return rounded
  const inputs = shape[1] ?? 0
  const group = storage.groupSize === 0 ? inputs : Math.min(storage.groupSize, inputs)
  return {
    precision,
    group: Math.ceil(group / ROUNDING_GROUP) * ROUNDING_GROUP,
    minimums: rounded.minimums || codesNeedMinimum(weight),
    ordered: tensors.groupIndex !== undefined && group < inputs && !('actOrder' in storage && !storage.actOrder),
  }
}

// At 8 bits. Zero points may turn out to be all in the middle; then none is kept.
function codesNeedMinimum({ storage, tensors }: WeightSource): boolean {
  switch (storage.method) {
    case 'gptq':
      return storage.bits === 8
    case 'awq':
      return storage.version === 'gemv_fast' || storage.bits === 8
    case 'pack-quantized':
      return storage.bits === 8 && !storage.symmetric
    default:
      return tensors.zeroPoints !== undefined
  }
}
