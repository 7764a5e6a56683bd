import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { checkConfig } from './check.js'
import { schemaFindings } from './findings.js'
import { ConfigError, type Finding, MAX_PROBLEMS } from './problem.js'
import { type Config, configSchema, type ModelConfig, type ParsedConfig } from './schema.js'
import { MAX_FILE_BYTES, parseYaml } from './source.js'

/** Reads and checks a models.yaml. Throws ConfigError with every fault found, each with its line and column. */
export function loadConfig(file: string): Config {
  return parseConfig(readText(file), file)
}

/** Checks the text of a models.yaml; rungs' paths are resolved against the folder of `file`. */
export function parseConfig(text: string, file: string): Config {
  const source = parseYaml(text)
  if (Array.isArray(source)) throw new ConfigError(file, source)
  const fail = (findings: readonly Finding[]) =>
    new ConfigError(
      file,
      findings.slice(0, MAX_PROBLEMS).map((finding) => source.locate(finding)),
    )
  const result = configSchema.safeParse(source.value)
  if (!result.success) throw fail(schemaFindings(configSchema, source.value, result.error))
  const findings = checkConfig(result.data)
  if (findings.length > 0) throw fail(findings)
  return { ...result.data, models: result.data.models.map((model) => resolveFiles(model, dirname(resolve(file)))) }
}

function readText(file: string): string {
  try {
    const descriptor = openSync(file, 'r')
    try {
      const stat = fstatSync(descriptor)
      if (!stat.isFile()) throw new Error('not a regular file')
      if (stat.size > MAX_FILE_BYTES) throw new Error(`${stat.size} bytes; at most ${MAX_FILE_BYTES} are read`)
      return new TextDecoder('utf-8', { fatal: true }).decode(readFileSync(descriptor))
    } finally {
      closeSync(descriptor)
    }
  } catch (error) {
    throw new ConfigError(file, [{ line: 0, column: 0, path: '', message: readFailure(error) }])
  }
}

function readFailure(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  if (code === 'ENOENT') return 'no such file'
  if (code === 'ERR_ENCODING_INVALID_ENCODED_DATA') return 'not UTF-8 text'
  return error instanceof Error ? error.message : String(error)
}

function resolveFiles(model: ParsedConfig['models'][number], folder: string): ModelConfig {
  const pathOf = (precision: string | undefined) =>
    model.variants.find((variant) => variant.precision === precision)?.path ?? ''
  const variants = model.variants.map(({ precision, path, from, format, family }) => ({
    path: resolve(folder, path ?? pathOf(from)),
    ...(precision && { precision }),
    ...(from && { from }),
    ...(format && { format }),
    ...(family && { family }),
  }))
  return { ...model, variants }
}
