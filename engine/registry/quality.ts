/** What has been measured of a model's rungs, from a file beside its weights. */
import { dirname, join } from 'node:path'
import { z } from 'zod'
import type { Precision } from '../native.js'
import { checkShape, readJsonObject } from './json-file.js'

/** Perplexity of a rung and of the reference on the same text. */
export interface MeasuredQuality {
  perplexity: number
  /** Of an implementation in full precision. */
  referencePerplexity: number
  /** The text, and how much of it. */
  text: string
}

/** By rung; a rung that nobody has measured has no entry. */
export type RungQuality = Partial<Record<Precision, MeasuredQuality>>

const MAX_BYTES = 64 * 1024
const perplexity = z.number().finite().min(1)
const measured = z.strictObject({ perplexity, reference_perplexity: perplexity, text: z.string().max(200) })
const schema = z.strictObject({
  rungs: z.strictObject({ fp16: measured.optional(), int8: measured.optional(), int4: measured.optional() }),
})

/** Where the quality of a model is written: beside a .gguf under its name, else in the weights' folder. */
export function qualityFileOf(weightFile: string): string {
  return weightFile.endsWith('.gguf')
    ? weightFile.replace(/gguf$/, 'quality.json')
    : join(dirname(weightFile), 'quality.json')
}

/** What such a file says; nothing where there is none. Throws ModelFileError. */
export function readQuality(file: string): RungQuality {
  const value = readJsonObject(file, MAX_BYTES)
  if (value === undefined) return {}
  const { rungs } = checkShape(schema, value, file)
  const quality: RungQuality = {}
  for (const rung of ['fp16', 'int8', 'int4'] as const) {
    const entry = rungs[rung]
    if (entry)
      quality[rung] = {
        perplexity: entry.perplexity,
        referencePerplexity: entry.reference_perplexity,
        text: entry.text,
      }
  }
  return quality
}
