/** What a request asks of the rung that serves it: the fields of a body, and the headers of the same meaning. */
import { z } from 'zod'
import { gigabytesToBytes } from '../../engine/config/index.js'
import { GatewayError } from '../errors.js'
import type { Needs } from '../request.js'
import { PRECISION_WISHES } from '../router/precision.js'

/** Looks a header up by its lower-case name. */
export type HeaderLookup = (name: string) => string | undefined

/** Longest deadline of a request. */
export const MAX_DEADLINE_MS = 24 * 60 * 60 * 1000

/** Fields of chat and completion bodies. */
export const needFields = {
  precision: z
    .enum(PRECISION_WISHES)
    .optional()
    .describe('The rung wanted, by its name or its place on the ladder. Default: the best that fits.'),
  min_precision: z.enum(PRECISION_WISHES).optional().describe('The worst rung that may serve the request.'),
  memory_limit_gb: z
    .number()
    .gt(0)
    .max(1_000_000)
    .optional()
    .describe('Most memory that the weights and workspace of its rung may take, in GB (10^9 bytes).'),
  speed_priority: z.number().min(0).max(1).optional().describe('0 = quality alone (default), 1 = speed alone.'),
  degrade: z
    .enum(['allow', 'forbid'])
    .optional()
    .describe('forbid: an error instead of another rung than the one wanted, also in mid-answer. Default allow.'),
  deadline_ms: z
    .int()
    .min(1)
    .max(MAX_DEADLINE_MS)
    .optional()
    .describe('Milliseconds after which the request ends with deadline_exceeded. Default: none.'),
}

/** The fields' values, without the deadline. */
export type NeedFields = Omit<z.infer<z.ZodObject<typeof needFields>>, 'deadline_ms'>

const { deadline_ms: _, ...withHeader } = needFields
const HEADERS = Object.entries(withHeader)

/** Reads x-edgeshift-precision and its like; undefined without any. Throws invalid_request naming the header. */
export function readNeedHeaders(header: HeaderLookup): NeedFields | undefined {
  let found: Record<string, unknown> | undefined
  for (const [field, schema] of HEADERS) {
    const name = `x-edgeshift-${field.replaceAll('_', '-')}`
    const text = header(name)
    if (text === undefined) continue
    const result = schema.safeParse(isDecimal(text) ? Number(text) : text)
    if (!result.success) throw invalidHeader(name, result.error.issues[0]?.message ?? 'is not valid')
    found ??= {}
    found[field] = result.data
  }
  return found
}

function isDecimal(text: string): boolean {
  return /^\d{1,12}(?:\.\d{1,12})?$/.test(text)
}

function invalidHeader(name: string, problem: string): GatewayError {
  const message = problem.replace(/^Invalid (input|option): /, '').replace(/^Too (big|small): /, '')
  return new GatewayError('invalid_request', `header ${name}: ${message}`, { param: name })
}

/** The request's needs: what the body says goes before what the headers say. */
export function toNeeds(body: NeedFields, headers: NeedFields = {}): Needs {
  const precision = body.precision ?? headers.precision
  const minPrecision = body.min_precision ?? headers.min_precision
  const memoryLimitGb = body.memory_limit_gb ?? headers.memory_limit_gb
  const speedPriority = body.speed_priority ?? headers.speed_priority
  const degrade = body.degrade ?? headers.degrade
  return {
    ...(precision !== undefined && { precision }),
    ...(minPrecision !== undefined && { minPrecision }),
    ...(memoryLimitGb !== undefined && { memoryLimitBytes: gigabytesToBytes(memoryLimitGb) }),
    ...(speedPriority !== undefined && { speedPriority }),
    ...(degrade !== undefined && { degrade }),
  }
}
