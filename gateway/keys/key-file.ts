/** The file of API keys: its schema and its checks. */
import { z } from 'zod'
import { duplicates, type Finding, locateRemarks, nearest, parseStrict } from '../../engine/config/index.js'
import { URGENCIES } from '../urgency.js'

const perMinute = () => z.int().min(1).max(1_000_000_000)

/** A key's display name: letters, digits and a few signs that are safe in logs and shells. */
export const nameSchema = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._@-]*$/, 'expected letters, digits, ".", "_", "@" or "-"')
  .max(64)

const keySchema = z.strictObject({
  id: z.string().regex(/^[a-z0-9]{1,32}$/, 'expected 1 to 32 small letters and digits'),
  name: nameSchema,
  /** Of the whole key's text. */
  sha256: z.string().regex(/^[0-9a-f]{64}$/, 'expected 64 hexadecimal digits'),
  /** Ids of the models it may use; absent = all. */
  models: z.array(z.string()).min(1).optional(),
  requests_per_minute: perMinute().optional(),
  tokens_per_minute: perMinute().optional(),
  /** Requests in flight at a time, and of these those that wait. */
  max_concurrent: z.int().min(1).max(100_000).optional(),
  max_waiting: z.int().min(1).max(100_000).optional(),
  /** Tokens that it is served for each one of a key of weight 1 while both wait; absent = 1. */
  weight: z.int().min(1).max(100).optional(),
  /** Most urgent priority that its requests may have; lower is more urgent. */
  priority_ceiling: z
    .int()
    .min(-(2 ** 31))
    .max(2 ** 31 - 1)
    .default(0),
  /** What its requests are that name no priority; absent = streams are interactive, whole answers batch. */
  class: z.enum(URGENCIES).optional(),
  /** May use /admin and /metrics. */
  admin: z.boolean().default(false),
})

const fileSchema = z.strictObject({ keys: z.array(keySchema) })

/** One key of the file, with defaults. */
export type KeyEntry = z.output<typeof keySchema>

/** Checks the text of a key file. Throws ConfigError with line and reason. */
export function parseKeyFile(text: string, file: string): KeyEntry[] {
  return parseStrict(text, file, fileSchema, ({ keys }) => checkKeys(keys)).keys
}

function checkKeys(keys: readonly KeyEntry[]): Finding[] {
  const unique = (field: 'id' | 'name' | 'sha256', what: string): Finding[] =>
    duplicates(
      keys.map((key) => key[field]),
      (index) => ['keys', index, field],
      what,
    )
  return [...unique('id', 'key id'), ...unique('name', 'key name'), ...unique('sha256', 'hash')]
}

/**
 * Models that keys name and nobody serves, one line each with its place. No fault: a model may have been removed, and
 * then its keys may use one less. `modelIds` are those of models.yaml.
 */
export function unknownModels(
  text: string,
  file: string,
  keys: readonly KeyEntry[],
  modelIds: readonly string[],
): string[] {
  const remarks = keys.flatMap(({ models = [] }, index) =>
    models.flatMap((id, place) => unknownModel(id, ['keys', index, 'models', place], modelIds)),
  )
  return locateRemarks(text, file, remarks)
}

/** Why a new key may not name a model; undefined when it may. */
export function refuseModel(id: string, modelIds: readonly string[]): string | undefined {
  return unknownModel(id, [], modelIds)[0]?.message
}

function unknownModel(id: string, path: Finding['path'], modelIds: readonly string[]): Finding[] {
  if (modelIds.includes(id)) return []
  const near = nearest(id, modelIds)
  const hint = near === undefined ? `models: ${modelIds.join(', ')}` : `did you mean "${near}"?`
  return [{ path, message: `no model "${id}" (ids only, not tags); ${hint}` }]
}
