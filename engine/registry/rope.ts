/**
 * Rotary inverse frequencies with context-extension scaling. The kinds and their parameters are those of
 * Hugging Face transformers' `rope_parameters` (older files: `rope_scaling`).
 */
import { z } from 'zod'
import type { RopeTable } from '../native.js'

const factor = z.number().min(1).max(1e6)
const positive = z.number().positive().max(1e9)
const count = z
  .number()
  .int()
  .min(1)
  .max(2 ** 31)
const factors = z.array(positive).min(1).max(1024)

/** Scaling parameters as they stand in config.json, without the base. */
export const ropeScalingSchema = z.discriminatedUnion('rope_type', [
  z.object({ rope_type: z.literal('default') }),
  z.object({ rope_type: z.literal('linear'), factor }),
  z.object({ rope_type: z.literal('dynamic'), factor }),
  z.object({
    rope_type: z.literal('llama3'),
    factor,
    low_freq_factor: positive,
    high_freq_factor: positive,
    original_max_position_embeddings: count,
  }),
  z.object({
    rope_type: z.literal('yarn'),
    factor,
    original_max_position_embeddings: count.optional(),
    attention_factor: positive.nullish(),
    beta_fast: positive.nullish(),
    beta_slow: positive.nullish(),
    mscale: positive.nullish(),
    mscale_all_dim: positive.nullish(),
    truncate: z.boolean().optional(),
  }),
  z.object({
    rope_type: z.literal('longrope'),
    short_factor: factors,
    long_factor: factors,
    original_max_position_embeddings: count.optional(),
    factor: factor.nullish(),
    attention_factor: positive.nullish(),
  }),
])

/** Names of the kinds. */
export const ropeKinds: readonly string[] = ropeScalingSchema.options.map(({ shape }) => shape.rope_type.value)

/** One kind of rope scaling with its parameters. */
export type RopeScaling = z.infer<typeof ropeScalingSchema>

/** Everything a layer's tables depend on but the sequence. */
export interface RopeSettings {
  scaling: RopeScaling
  /** Base of the frequencies. */
  theta: number
  /** Values of a head that are rotated. */
  rotaryDim: number
  maxPositionEmbeddings: number
}

/**
 * The table for sequences of `length` tokens; in double precision, rounded once. Only dynamic and longrope depend on
 * the length. The reference implementation computes it from the length of the prompt.
 */
export function ropeTable(settings: RopeSettings, length = 1): RopeTable {
  const { scaling } = settings
  switch (scaling.rope_type) {
    case 'default':
      return table(frequencies(settings), 1)
    case 'linear':
      return table(
        frequencies(settings).map((f) => f / scaling.factor),
        1,
      )
    case 'dynamic':
      return table(frequencies({ ...settings, theta: dynamicTheta(scaling.factor, settings, length) }), 1)
    case 'llama3':
      return table(frequencies(settings).map(llama3Scaled(scaling)), 1)
    case 'yarn':
      return yarnTable(scaling, settings)
    default:
      return longropeTable(scaling, settings, length)
  }
}

/** Prompts longer than this many tokens take a table of their own length; Infinity = one table serves all. */
export function ropeLengthLimit({ scaling, maxPositionEmbeddings }: RopeSettings): number {
  if (scaling.rope_type === 'dynamic') return maxPositionEmbeddings
  if (scaling.rope_type === 'longrope') return scaling.original_max_position_embeddings ?? maxPositionEmbeddings
  return Infinity
}

/** The rotary tables of a sequence with a prompt of this length; empty where they are the model's own. */
export function promptRopes(
  { ropes }: { ropes: readonly { settings: RopeSettings; table: RopeTable }[] },
  promptLength: number,
): { table: RopeTable }[] {
  if (promptLength <= ropeLimit({ ropes })) return []
  return ropes.map((rope) => ({
    table: promptLength > ropeLengthLimit(rope.settings) ? ropeTable(rope.settings, promptLength) : rope.table,
  }))
}

/** Prompts longer than this many tokens take tables of their own. */
export function ropeLimit({ ropes }: { ropes: readonly { settings: RopeSettings }[] }): number {
  return Math.min(...ropes.map(({ settings }) => ropeLengthLimit(settings)), Infinity)
}

/** Longest sequence that the scaling was made for, tokens. */
export function scaledContext({ scaling, maxPositionEmbeddings }: RopeSettings): number {
  switch (scaling.rope_type) {
    case 'dynamic':
      return Math.floor(maxPositionEmbeddings * scaling.factor)
    case 'yarn': {
      const original = scaling.original_max_position_embeddings ?? maxPositionEmbeddings
      return Math.max(maxPositionEmbeddings, Math.floor(original * scaling.factor))
    }
    default:
      return maxPositionEmbeddings
  }
}

function table(invFreq: readonly number[], scale: number): RopeTable {
  return { invFreq: Float32Array.from(invFreq), scale }
}

function frequencies({ theta, rotaryDim }: RopeSettings): number[] {
  return Array.from({ length: rotaryDim / 2 }, (_, i) => theta ** (-(2 * i) / rotaryDim))
}

// "Dynamic NTK": the base grows with the sequence once it passes the trained length.
function dynamicTheta(
  scale: number,
  { theta, rotaryDim, maxPositionEmbeddings }: RopeSettings,
  length: number,
): number {
  const growth = (scale * Math.max(length, maxPositionEmbeddings)) / maxPositionEmbeddings - (scale - 1)
  return theta * growth ** (rotaryDim / (rotaryDim - 2))
}

function llama3Scaled(scaling: Extract<RopeScaling, { rope_type: 'llama3' }>): (frequency: number) => number {
  const { factor: scale, low_freq_factor: low, high_freq_factor: high } = scaling
  const original = scaling.original_max_position_embeddings
  return (frequency) => {
    const wavelength = (2 * Math.PI) / frequency
    if (wavelength < original / high) return frequency
    if (wavelength > original / low) return frequency / scale
    const smooth = (original / wavelength - low) / (high - low)
    return ((1 - smooth) * frequency) / scale + smooth * frequency
  }
}

// YaRN (Peng et al. 2023): a linear ramp between extrapolated and interpolated frequencies.
function yarnTable(scaling: Extract<RopeScaling, { rope_type: 'yarn' }>, inputs: RopeSettings): RopeTable {
  const { theta, rotaryDim } = inputs
  const original = scaling.original_max_position_embeddings ?? inputs.maxPositionEmbeddings
  const dimensionOf = (rotations: number): number =>
    (rotaryDim * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta))
  const rounded = scaling.truncate ?? true
  const fast = dimensionOf(scaling.beta_fast ?? 32)
  const slow = dimensionOf(scaling.beta_slow ?? 1)
  const low = Math.max(rounded ? Math.floor(fast) : fast, 0)
  const high = Math.min(rounded ? Math.ceil(slow) : slow, rotaryDim - 1)
  const invFreq = frequencies(inputs).map((frequency, i) => {
    const ramp = Math.min(Math.max((i - low) / (high === low ? 0.001 : high - low), 0), 1)
    return (frequency / scaling.factor) * ramp + frequency * (1 - ramp)
  })
  return table(invFreq, scaling.attention_factor ?? yarnAttentionFactor(scaling))
}

function yarnAttentionFactor({
  factor: scale,
  mscale,
  mscale_all_dim: all,
}: Extract<RopeScaling, { rope_type: 'yarn' }>): number {
  const magnitude = (m: number): number => (scale <= 1 ? 1 : 0.1 * m * Math.log(scale) + 1)
  return mscale && all ? magnitude(mscale) / magnitude(all) : magnitude(1)
}

// LongRoPE (Ding et al. 2024): a factor per dimension, one set up to the trained length and one beyond it.
function longropeTable(
  scaling: Extract<RopeScaling, { rope_type: 'longrope' }>,
  inputs: RopeSettings,
  length: number,
): RopeTable {
  const original = scaling.original_max_position_embeddings ?? inputs.maxPositionEmbeddings
  const chosen = length > original ? scaling.long_factor : scaling.short_factor
  if (chosen.length !== inputs.rotaryDim / 2) {
    throw new RangeError(`longrope has ${chosen.length} factors for ${inputs.rotaryDim / 2} frequencies`)
  }
  const extension = scaling.factor ?? inputs.maxPositionEmbeddings / original
  const attention = extension <= 1 ? 1 : Math.sqrt(1 + Math.log(extension) / Math.log(original))
  return table(
    frequencies(inputs).map((frequency, i) => frequency / (chosen[i] ?? 1)),
    scaling.attention_factor ?? attention,
  )
}
