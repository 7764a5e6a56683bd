/** What a person should know of a model that is served all the same. */
import type { WeightSource } from '../native.js'
import { readHashRecord } from './hash-record.js'
import { type KnownHash, knownHashes } from './known-hash.js'
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

/** What stands beside a model's weights: a model is served without it, and a notice says what cannot be read. */
export interface Beside {
  quality: RungQuality
  /** Of each file, empty where nobody has said anything. */
  hashes: KnownHash[][]
  notices: string[]
}

/** Reads measured quality and hashes. `files`: those with weights, at least one. */
export function readBeside(files: readonly string[], recordFile: string, weights: readonly WeightSource[]): Beside {
  const notices = roundingNotices(weights)
  const orNotice = <T>(read: () => T): T | undefined => {
    try {
      return read()
    } catch (error) {
      if (!(error instanceof ModelFileError)) throw error
      notices.push(error.message)
      return undefined
    }
  }
  const quality = orNotice(() => readQuality(qualityFileOf(files[0] ?? ''))) ?? {}
  const record = orNotice(() => readHashRecord(recordFile))
  return { quality, hashes: files.map((file) => knownHashes(file, record)), notices }
}
