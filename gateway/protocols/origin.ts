/** What a request's headers (HTTP, WebSocket upgrade) or metadata (gRPC) say beside its body. */
import { randomUUID } from 'node:crypto'
import { GatewayError } from '../errors.js'
import { type HeaderLookup, MAX_DEADLINE_MS, type NeedFields, readNeedHeaders } from './needs.js'

/** Where a request comes from and how urgent it is. */
export interface Origin {
  /** Ours, unique: "req-...". */
  id: string
  /** Fairness and cache salt: of the caller's grant. */
  tenant: string
  /** A valid W3C traceparent. */
  traceparent?: string
  /** The client's own request id, cleaned: for the log only. */
  clientRequestId?: string
  priority?: number
  deadlineMs?: number
  /** The answer streams although no field of the body says so. */
  streams?: boolean
  /** What the headers ask of the rung; a body's fields go before them. */
  needs?: NeedFields
}

const MAX_PRIORITY = 2 ** 31 - 1

/** Reads the headers. Throws GatewayError when one of ours is not in its range. */
export function readOrigin(header: HeaderLookup, tenant: string, id = newRequestId()): Origin {
  const traceparent = validTraceparent(header('traceparent'))
  const clientRequestId = header('x-request-id')
  const priority = integerHeader(header, 'x-edgeshift-priority', -MAX_PRIORITY - 1, MAX_PRIORITY)
  const deadlineMs = integerHeader(header, 'x-edgeshift-deadline-ms', 1, MAX_DEADLINE_MS)
  const needs = readNeedHeaders(header)
  return {
    id,
    tenant,
    ...(traceparent !== undefined && { traceparent }),
    ...(clientRequestId !== undefined && { clientRequestId: cleanClientId(clientRequestId) }),
    ...(priority !== undefined && { priority }),
    ...(deadlineMs !== undefined && { deadlineMs }),
    ...(needs && { needs }),
  }
}

/** A fresh request id. */
export function newRequestId(): string {
  return `req-${randomUUID()}`
}

/** The client's id as a log field: printable ASCII, at most 64 characters. */
export function cleanClientId(id: string): string {
  return id.slice(0, 64).replace(/[^\x21-\x7e]/g, '?')
}

/** The token of an `authorization` header of the form "Bearer TOKEN". */
export function bearerToken(authorization: string | undefined): string | undefined {
  return authorization === undefined ? undefined : /^bearer\s+(\S+)$/i.exec(authorization)?.[1]
}

/** The header when it is a W3C traceparent (version 00, or a later one with more fields), else undefined. */
export function validTraceparent(value: string | undefined): string | undefined {
  const match = value && /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[\x21-\x7e]{1,128})?$/.exec(value)
  if (!match) return undefined
  const [, version, trace, parent, more] = match
  if (version === 'ff' || (version === '00' && more) || isZero(trace) || isZero(parent)) return undefined
  return value
}

function isZero(hex: string | undefined): boolean {
  return hex === undefined || /^0*$/.test(hex)
}

function integerHeader(header: HeaderLookup, name: string, min: number, max: number): number | undefined {
  const value = header(name)
  if (value === undefined) return undefined
  const number = /^-?\d{1,10}$/.test(value) ? Number(value) : Number.NaN
  if (number >= min && number <= max) return number
  throw new GatewayError('invalid_request', `header ${name} must be an integer from ${min} to ${max}`, { param: name })
}
