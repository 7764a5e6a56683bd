/** What a person should know of a model that is served all the same. */
import type { WeightSource } from '../native.js'
import { ModelFileError } from './model-file-error.js'
import { qualityFileOf, readQuality, type RungQuality } from './quality.js'

/** GGUF types without a linear form, and the width that they are rounded to (native/quant/block_type.h). */
const ROUNDED: Readonly<Record<string, string>> = {
  ...Object.fromEntries('q2_k tq1_0 tq2_0 iq1_s iq1_m iq2_xxs iq2_xs iq2_s'.split(' ').map((type) => [type, 'int4'])),
  ...Object.fromEntries('q3_k q6_k iq3_xxs iq3_s mxfp4 nvfp4'.split(' ').map((type) => [type, 'int8'])),
}

/** One line for each type of block that no rung but fp16 keeps as it is. */
function roundingNotices(weights: readonly WeightSource[]): string[] {
  const counts = new Map<string, number>()
  for (const { shape, tensors } of weights) {
    const type = tensors.values?.type ?? ''
    if (shape.length > 1 && Object.hasOwn(ROUNDED, type)) counts.set(type, (counts.get(type) ?? 0) + 1)
  }
  return Array.from(
    counts,
    ([type, count]) =>
      `${count} ${count === 1 ? 'matrix' : 'matrices'} of ${type}, which has no linear form: rounded to ${ROUNDED[type]} at quantized rungs, exact at fp16`,
  )
}

/** Measured quality, and a notice instead where its file cannot be read: a model is served without it. */
export function qualityAndNotices(
  weightFile: string,
  weights: readonly WeightSource[],
): { quality: RungQuality; notices: string[] } {
  const notices = roundingNotices(weights)
  try {
    return { quality: readQuality(qualityFileOf(weightFile)), notices }
  } catch (error) {
    if (!(error instanceof ModelFileError)) throw error
    return { quality: {}, notices: [...notices, error.message] }
  }
}
