/**
 * `quantization_config` of a Hugging Face checkpoint: how each linear module is stored.
 * Followed: AutoGPTQ and GPTQModel (`dynamic` per-module overrides), AutoAWQ (`modules_to_not_convert`),
 * compressed-tensors (`config_groups`, `ignore`), fine-grained fp8 (`weight_block_size`).
 */
import { z } from 'zod'
import { checkShape } from './json-file.js'
import { ModulePatterns } from './module-patterns.js'
import { invalidFile, quote, unsupported } from './model-file-error.js'
import type { Storage } from './stored-weight.js'

const SECTION = 'quantization_config'
const PLAIN: Storage = { method: 'plain' }

/** Tells how the module of that name ("model.layers.0.mlp.up_proj") is stored. Throws ModelFileError. */
export type ModuleStorage = (module: string) => Storage

const groupSize = z.int().refine((value) => value === -1 || (value >= 8 && value <= 65_536), 'expected -1 or 8..65536')
const gptqBits = z.union([z.literal(2), z.literal(3), z.literal(4), z.literal(8)], 'expected 2, 3, 4 or 8')
const name = z.string().max(1000)
const names = z.array(name).max(10_000)

const overrideSchema = z.looseObject({
  bits: gptqBits.optional(),
  group_size: groupSize.optional(),
  desc_act: z.boolean().optional(),
})
const dynamicSchema = z
  .record(name, z.union([overrideSchema, z.null()]))
  .refine((rules) => Object.keys(rules).length <= 1000, 'more than 1000 rules')

const gptqFormat = z.enum(['gptq', 'gptq_v2'])
const gptqSchema = z.looseObject({
  bits: gptqBits,
  group_size: groupSize,
  desc_act: z.boolean().default(false),
  checkpoint_format: gptqFormat.optional(),
  format: gptqFormat.optional(),
  pack_dtype: z.literal('int32').optional(),
  dynamic: dynamicSchema.nullish(),
})

// Of the widths that GPTQModel can pack those that the formats of others have too; AutoAWQ asserts 4 bits.
const awqSchema = z
  .looseObject({
    bits: z.union([z.literal(4), z.literal(8)], 'expected 4, or 8 with version gemm'),
    group_size: groupSize,
    version: z
      .string()
      .max(100)
      .toLowerCase()
      .pipe(z.enum(['gemm', 'gemv', 'gemv_fast']))
      .default('gemm'),
    pack_dtype: z.literal('int32').optional(),
    zero_point: z.literal(true, 'expected true: no known tool writes AWQ without zero points').default(true),
    modules_to_not_convert: names.nullish(),
    dynamic: dynamicSchema.nullish(),
  })
  .refine(({ bits, version }) => bits === 4 || version === 'gemm', {
    path: ['bits'],
    message: 'expected 4, or 8 with version gemm',
  })

const blockSide = z.int().min(1).max(65_536)
const blockShape = z.tuple([blockSide, blockSide], 'expected two sizes')
const fp8Schema = z.looseObject({
  fmt: z.literal('e4m3', 'expected e4m3').default('e4m3'),
  // Files that say nothing have transformers' default; null is one scale for each matrix.
  weight_block_size: blockShape.nullable().default([128, 128]),
  modules_to_not_convert: names.nullish(),
})

const ctWeights = z.looseObject({
  num_bits: z.int(),
  type: z.enum(['int', 'float']),
  symmetric: z.boolean().default(true),
  strategy: z.enum(['group', 'channel', 'tensor', 'block']),
  group_size: groupSize.nullish(),
  block_structure: blockShape.nullish(),
})
const ctGroup = z.looseObject({
  targets: names.min(1),
  weights: ctWeights,
  input_activations: z.looseObject({}).nullish(),
  format: name.nullish(),
})
const empty = z.strictObject({}, 'is not supported')
const ctSchema = z.looseObject({
  format: name,
  config_groups: z
    .record(name, ctGroup)
    .refine((groups) => Object.keys(groups).length > 0, 'is empty')
    .refine((groups) => Object.keys(groups).length <= 100, 'more than 100 groups'),
  ignore: names.nullish(),
  transform_config: empty.nullish(),
  sparsity_config: z.union([empty, z.looseObject({ format: z.literal('dense') })], 'is not supported').nullish(),
})

/** Reads a quantization_config (undefined: nothing is quantized). Throws ModelFileError with the field and the reason. */
export function parseQuantizationConfig(file: string, config: Record<string, unknown> | undefined): ModuleStorage {
  if (config === undefined) return () => PLAIN
  const method = config['quant_method'] ?? legacyMethod(config)
  const patterns = new ModulePatterns(file)
  switch (method) {
    case 'gptq':
      return gptqStorage(checkShape(gptqSchema, config, file, SECTION), patterns)
    case 'awq':
      return awqStorage(checkShape(awqSchema, config, file, SECTION), patterns)
    case 'compressed-tensors':
      return compressedTensorsStorage(file, checkShape(ctSchema, config, file, SECTION), patterns)
    case 'fp8':
      return fp8Storage(checkShape(fp8Schema, config, file, SECTION))
    case undefined:
      throw invalidFile(file, `${SECTION}: quant_method is missing`)
    default:
      throw unsupported(
        file,
        `${SECTION}: quant_method ${quote(method)} is not supported (gptq, awq, fp8 and compressed-tensors are)`,
      )
  }
}

// AutoGPTQ's quantize_config.json names no method; its desc_act gives it away.
function legacyMethod(config: Record<string, unknown>): string | undefined {
  return 'desc_act' in config ? 'gptq' : undefined
}

const groupInputs = (value: number | null | undefined): number => (value === -1 || !value ? 0 : value)

function gptqStorage(config: z.infer<typeof gptqSchema>, patterns: ModulePatterns): ModuleStorage {
  const overrideOf = dynamicOverrides(config.dynamic ?? {}, patterns)
  const format = config.checkpoint_format ?? config.format ?? 'gptq'
  return (module) => {
    const override = overrideOf(module)
    if (override === 'plain') return PLAIN
    return {
      method: 'gptq',
      bits: override?.bits ?? config.bits,
      groupSize: groupInputs(override?.group_size ?? config.group_size),
      zeroPointsMinusOne: format === 'gptq',
      actOrder: override?.desc_act ?? config.desc_act,
    }
  }
}

// GPTQModel: "-:regex" leaves modules out, "+:regex" or a bare one overrides settings; the first that matches wins.
function dynamicOverrides(
  dynamic: z.infer<typeof dynamicSchema>,
  patterns: ModulePatterns,
): (module: string) => z.infer<typeof overrideSchema> | 'plain' | undefined {
  const rules = Object.entries(dynamic).map(([key, value]) => ({
    matches: patterns.prefix(key.replace(/^[+-]:/, '')),
    outcome: key.startsWith('-:') ? ('plain' as const) : (value ?? {}),
  }))
  return (module) => rules.find((rule) => rule.matches(module))?.outcome
}

// AutoAWQ leaves a module out when its name contains one of the strings; GPTQModel's AWQ says it by `dynamic`.
function awqStorage(config: z.infer<typeof awqSchema>, patterns: ModulePatterns): ModuleStorage {
  const overrideOf = dynamicOverrides(config.dynamic ?? {}, patterns)
  const skipped = config.modules_to_not_convert ?? []
  return (module) => {
    if (skipped.some((part) => module.includes(part)) || overrideOf(module) === 'plain') return PLAIN
    return { method: 'awq', version: config.version, bits: config.bits, groupSize: groupInputs(config.group_size) }
  }
}

// transformers leaves a module out when its name is, ends with or lies below one of the names.
function fp8Storage(config: z.infer<typeof fp8Schema>): ModuleStorage {
  const skipped = (config.modules_to_not_convert ?? []).map((part) => `.${part}.`)
  const [blockOutputs, blockInputs] = config.weight_block_size ?? [0, 0]
  const stored: Storage = {
    method: 'float-quantized',
    layout: 'fp8',
    quantizedActivations: true,
    blockOutputs,
    blockInputs,
  }
  return (module) => (skipped.some((part) => `.${module}.`.includes(part)) ? PLAIN : stored)
}

function compressedTensorsStorage(
  file: string,
  config: z.infer<typeof ctSchema>,
  patterns: ModulePatterns,
): ModuleStorage {
  const ignored = (config.ignore ?? []).map((target) => targetMatcher(target, patterns))
  const groups = Object.values(config.config_groups).map((group) => ({
    targets: group.targets.map((target) => targetMatcher(target, patterns)),
    stored: compressedTensorsGroup(file, group, group.format ?? config.format),
  }))
  return (module) => {
    if (ignored.some((matches) => matches(module))) return PLAIN
    return groups.find(({ targets }) => targets.some((matches) => matches(module)))?.stored ?? PLAIN
  }
}

// A target is "re:regex", a module's class name (every module asked about is a Linear) or a module's name.
function targetMatcher(target: string, patterns: ModulePatterns): (module: string) => boolean {
  if (target.startsWith('re:')) return patterns.prefix(target.slice(3))
  return target === 'Linear' ? () => true : (module) => module === target || module.endsWith(`.${target}`)
}

function compressedTensorsGroup(file: string, group: z.infer<typeof ctGroup>, format: string): Storage {
  const { type, num_bits: bits, strategy, symmetric, group_size: size, block_structure: block } = group.weights
  const quantizedActivations = Boolean(group.input_activations)
  const inputs = strategy === 'group' ? groupInputs(size) : 0
  if (
    format === 'pack-quantized' &&
    type === 'int' &&
    (bits === 4 || bits === 8) &&
    (strategy === 'group' || strategy === 'channel')
  )
    return { method: 'pack-quantized', bits, groupSize: inputs, symmetric }
  if (format === 'int-quantized' && type === 'int' && bits === 8 && symmetric && strategy !== 'block')
    return { method: 'int-quantized', groupSize: inputs, quantizedActivations }
  if (format === 'float-quantized' && type === 'float' && bits === 8 && strategy !== 'group') {
    const [blockOutputs, blockInputs] = (strategy === 'block' && block) || [0, 0]
    if (strategy !== 'block' || blockInputs > 0)
      return {
        method: 'float-quantized',
        layout: 'compressed-tensors',
        quantizedActivations,
        blockOutputs,
        blockInputs,
      }
  }
  const what = `${bits}-bit ${symmetric ? '' : 'asymmetric '}${type} weights by ${strategy}`
  throw unsupported(file, `${SECTION}: format ${quote(format)} with ${what} is not supported`)
}
