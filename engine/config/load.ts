import { createHash } from 'node:crypto'
import { dirname, resolve } from 'node:path'
import { checkConfig } from './check.js'
import { type Config, configSchema, type ModelConfig, type ParsedConfig } from './schema.js'
import { parseStrict, readText } from './strict.js'

/** Reads and checks a models.yaml. Throws ConfigError with every fault found, each with its line and column. */
export function loadConfig(file: string): Config {
  return parseConfig(readText(file), file)
}

/** Checks the text of a models.yaml; the paths in it are resolved against the folder of `file`. */
export function parseConfig(text: string, file: string): Config {
  const parsed = parseStrict(text, file, configSchema, checkConfig)
  const folder = dirname(resolve(file))
  return {
    ...parsed,
    server: resolveServer(parsed.server, folder),
    models: parsed.models.map((model) => resolveFiles(model, folder)),
    digest: textDigest(text),
  }
}

/** The `digest` of a configuration with this text. */
export function textDigest(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

function resolveServer(server: ParsedConfig['server'], folder: string): ParsedConfig['server'] {
  const { api_keys_file: keys, tls_cert: cert, tls_key: key, cache_dir: cache } = server
  return {
    ...server,
    ...(keys !== undefined && { api_keys_file: resolve(folder, keys) }),
    ...(cache !== undefined && { cache_dir: resolve(folder, cache) }),
    ...(cert !== undefined && { tls_cert: resolve(folder, cert) }),
    ...(key !== undefined && { tls_key: resolve(folder, key) }),
  }
}

function resolveFiles(model: ParsedConfig['models'][number], folder: string): ModelConfig {
  const unstated = model.variants.find(({ precision, path }) => precision === undefined && path !== undefined)
  const pathOf = (precision: string | undefined) =>
    (model.variants.find((variant) => variant.precision === precision) ?? unstated)?.path ?? ''
  const variants = model.variants.map(({ precision, path, from, format, family }) => ({
    path: resolve(folder, path ?? pathOf(from)),
    ...(precision && { precision }),
    ...(from && { from }),
    ...(format && { format }),
    ...(family && { family }),
  }))
  return { ...model, variants }
}
