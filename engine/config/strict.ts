import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs'
import type { z } from 'zod'
import { schemaFindings } from './findings.js'
import { ConfigError, type Finding, formatPath, formatProblem, MAX_PROBLEMS } from './problem.js'
import { MAX_FILE_BYTES, parseYaml } from './source.js'

/** Checks the text of a YAML file against a schema, then the rules between its fields. Throws ConfigError with every fault. */
export function parseStrict<T>(
  text: string,
  file: string,
  schema: z.ZodType<T>,
  check: (value: T) => readonly Finding[],
): T {
  const source = parseYaml(text)
  if (Array.isArray(source)) throw new ConfigError(file, source)
  const fail = (findings: readonly Finding[]) =>
    new ConfigError(
      file,
      findings.slice(0, MAX_PROBLEMS).map((finding) => source.locate(finding)),
    )
  const result = schema.safeParse(source.value)
  if (!result.success) throw fail(schemaFindings(schema, source.value, result.error))
  const findings = check(result.data)
  if (findings.length > 0) throw fail(findings)
  return result.data
}

/** Remarks on a file's text that are no faults, one line each: file:line:column: path: message. */
export function locateRemarks(text: string, file: string, remarks: readonly Finding[]): string[] {
  if (remarks.length === 0) return []
  const source = parseYaml(text)
  return remarks.map((remark) => {
    const unplaced = { line: 0, column: 0, path: formatPath(remark.path), message: remark.message }
    return formatProblem(file, Array.isArray(source) ? unplaced : source.locate(remark))
  })
}

/** The text of a regular UTF-8 file of at most MAX_FILE_BYTES. Throws ConfigError. */
export function readText(file: string): string {
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
