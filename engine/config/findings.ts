import { z } from 'zod'
import { nearest } from './nearest.js'
import type { Finding, KeyPath } from './problem.js'

/** What the schema says against a value, in words with the nearest known key. */
export function schemaFindings(schema: z.ZodType, value: unknown, error: z.ZodError): Finding[] {
  return error.issues.flatMap((issue) => issueFindings(schema, value, issue))
}

function issueFindings(schema: z.ZodType, value: unknown, issue: z.core.$ZodIssue): Finding[] {
  const path = issue.path.filter((part) => typeof part !== 'symbol')
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => ({
        path: [...path, key],
        message: unknownKey(schema, value, path, key),
        key: true,
      }))
    case 'invalid_value':
      return [{ path, message: wrongValue(issue.values.map(String), valueAt(value, path)) }]
    case 'invalid_union':
      return [{ path, message: unionMessage(issue, valueAt(value, path)) }]
    case 'invalid_type':
      return [{ path, message: wrongType(issue.expected, valueAt(value, path)) }]
    default:
      return [{ path, message: issue.message.replace(/^[A-Z]/, (letter) => letter.toLowerCase()) }]
  }
}

/** A union by a discriminator names its options; others carry a message of their own. */
function unionMessage(issue: z.core.$ZodIssueInvalidUnion, found: unknown): string {
  return 'options' in issue && issue.options ? wrongValue(issue.options.map(String), found) : issue.message
}

/** Keys that have no sense in some entries of a section, by section and key. */
const SENSELESS: Record<string, string> = {
  'devices.host_cache_gb':
    'a CPU device computes in host memory and has no second copy there; server.cache_dir keeps repacked files, which the page cache holds',
}

function unknownKey(schema: z.ZodType, value: unknown, path: KeyPath, key: string): string {
  const senseless = SENSELESS[`${String(path[0])}.${key}`]
  if (senseless !== undefined) return senseless
  const known = knownKeys(schema, value, path)
  const near = nearest(key, known)
  return near === undefined ? `unknown key; known here: ${known.join(', ')}` : `unknown key; did you mean "${near}"?`
}

function wrongValue(allowed: readonly string[], found: unknown): string {
  const near = typeof found === 'string' ? nearest(found, allowed) : undefined
  const hint = near === undefined ? '' : `; did you mean "${near}"?`
  return found === undefined
    ? `missing; expected ${allowed.join(' or ')}`
    : `expected ${allowed.join(' or ')}, found ${show(found)}${hint}`
}

function wrongType(expected: string, found: unknown): string {
  const names: Record<string, string> = {
    int: 'a whole number',
    number: 'a number',
    string: 'a text',
    boolean: 'true or false',
    array: 'a list',
    object: 'a section of keys',
  }
  const wanted = names[expected] ?? expected
  return found === undefined ? `missing; expected ${wanted}` : `expected ${wanted}, found ${show(found)}`
}

function show(value: unknown): string {
  if (value === null) return 'nothing'
  if (Array.isArray(value)) return 'a list'
  if (typeof value === 'object') return 'a section of keys'
  const text = JSON.stringify(value)
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}

function valueAt(value: unknown, path: KeyPath): unknown {
  let here = value
  for (const part of path) {
    if (typeof here !== 'object' || here === null || !Object.hasOwn(here, part)) return undefined
    here = Reflect.get(here, part)
  }
  return here
}

/** Keys that the schema allows in the section at `path`. */
function knownKeys(schema: z.ZodType, value: unknown, path: KeyPath): string[] {
  let here: unknown = schema
  for (const [depth, part] of path.entries()) {
    const section = sectionOf(here, valueAt(value, path.slice(0, depth)))
    if (section instanceof z.ZodObject) here = section.shape[part]
    else if (section instanceof z.ZodArray) here = section.element
    else return []
  }
  const section = sectionOf(here, valueAt(value, path))
  return section instanceof z.ZodObject ? Object.keys(section.shape) : []
}

/** Looks through defaults, and through a discriminated union by the value it has. */
function sectionOf(schema: unknown, value: unknown): unknown {
  let here = schema
  while (here instanceof z.ZodPrefault || here instanceof z.ZodDefault || here instanceof z.ZodOptional)
    here = here.unwrap()
  if (!(here instanceof z.ZodDiscriminatedUnion)) return here
  return here.options.find((option) => {
    const issues = z.safeParse(option, value).error?.issues ?? []
    return issues.every((issue) => issue.path[0] !== 'kind')
  })
}
