/** Rotary settings of config.json, in the spelling of transformers 4 and 5. */
import { z } from 'zod'
import type { RawConfig } from './raw-config.js'
import { checkShape } from './json-file.js'
import { invalidFile, quote, unsupported } from './model-file-error.js'
import { ropeKinds, ropeScalingSchema, type RopeSettings } from './rope.js'

const thetaSchema = z.number().gt(1).max(1e12)
const partialSchema = z.number().positive().max(1)

/** Other names of the same kind. */
const ALIASES: Readonly<Record<string, string>> = { su: 'longrope' }

/** What the family says: bases where the file names none, `local` that of windowed layers where they have their own. */
export interface RopeFallback {
  full: number
  local: number | undefined
  yarnIsLongrope: boolean
}

/** Settings of full layers and, where the family has a base of their own for them, of windowed layers. */
export function readRopeSettings(
  file: string,
  raw: RawConfig,
  headDim: number,
  fallback: RopeFallback,
): RopeSettings[] {
  const { rope_parameters: parameters, rope_scaling: scaling } = raw
  const byLayerType = parameters ?? {}
  const full = nested(byLayerType['full_attention'])
  const local = nested(byLayerType['sliding_attention'])
  if (fallback.local === undefined) {
    if (full || local) throw unsupported(file, `rope_parameters by layer type are not supported with ${raw.model_type}`)
    const flat = { ...(parameters ?? scaling) }
    const named = flat['rope_type'] ?? flat['type']
    if (fallback.yarnIsLongrope && named === 'yarn') flat['rope_type'] = 'longrope'
    return [settings(file, raw, headDim, flat, raw.rope_theta ?? fallback.full)]
  }
  if (parameters && !full) throw unsupported(file, `rope_parameters of ${raw.model_type} must be by layer type`)
  return [
    settings(file, raw, headDim, full ?? scaling ?? {}, raw.rope_theta ?? fallback.full),
    settings(file, raw, headDim, local ?? {}, fallback.local),
  ]
}

function nested(value: unknown): Record<string, unknown> | undefined {
  return typeof value === 'object' && value !== null ? { ...value } : undefined
}

function settings(
  file: string,
  raw: RawConfig,
  headDim: number,
  parameters: Record<string, unknown>,
  fallbackTheta: number,
): RopeSettings {
  const theta = checkShape(thetaSchema, parameters['rope_theta'] ?? fallbackTheta, file, 'rope_theta')
  const share = parameters['partial_rotary_factor'] ?? raw.partial_rotary_factor ?? 1
  const rotaryDim = Math.floor(headDim * checkShape(partialSchema, share, file, 'partial_rotary_factor'))
  if (rotaryDim < 2 || rotaryDim % 2 !== 0)
    throw invalidFile(file, `partial_rotary_factor ${quote(share)} gives ${rotaryDim} rotated values of ${headDim}`)
  const named = parameters['rope_type'] ?? parameters['type'] ?? 'default'
  const kind = typeof named === 'string' && Object.hasOwn(ALIASES, named) ? ALIASES[named] : named
  if (typeof kind !== 'string' || !ropeKinds.includes(kind))
    throw unsupported(file, `rope_type ${quote(named)} is not supported (${ropeKinds.join(', ')} are)`)
  // As transformers: the field outside goes before the one inside; without either it is the model's own length.
  const original =
    raw.original_max_position_embeddings ??
    parameters['original_max_position_embeddings'] ??
    (kind === 'default' ? undefined : raw.max_position_embeddings)
  const given = {
    ...parameters,
    rope_type: kind,
    ...(original == null ? {} : { original_max_position_embeddings: original }),
  }
  const scaling = checkShape(ropeScalingSchema, given, file, 'rope_scaling')
  return { scaling, theta, rotaryDim, maxPositionEmbeddings: raw.max_position_embeddings }
}
