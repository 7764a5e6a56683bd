/** Request bodies: bounded before they are read, decoded strictly. */
import { isUtf8 } from 'node:buffer'
import type { IncomingMessage } from 'node:http'
import { GatewayError } from '../errors.js'

/** Nesting of a JSON Schema that an answer is to follow. */
export const MAX_SCHEMA_DEPTH = 64
/** Nesting of a JSON body; the deepest request is a schema in a field of a field of its body. */
const MAX_DEPTH = MAX_SCHEMA_DEPTH + 3

/**
 * Reads and parses a JSON body of at most `maxBytes`. Throws GatewayError: body_too_large, unsupported_media_type,
 * invalid_request (not UTF-8, not JSON, too deep), cancelled (the client went away before its end).
 */
export async function readJson(incoming: IncomingMessage, maxBytes: number): Promise<unknown> {
  checkMediaType(incoming)
  const bytes = await readBody(incoming, maxBytes)
  if (bytes.length === 0) throw new GatewayError('invalid_request', 'the body is empty; it must be a JSON object')
  if (!isUtf8(bytes)) throw new GatewayError('invalid_request', 'the body is not valid UTF-8')
  const value = parse(bytes.toString())
  if (isDeeper(value, MAX_DEPTH)) {
    throw new GatewayError('invalid_request', `the body is nested deeper than ${MAX_DEPTH} levels`)
  }
  return value
}

function checkMediaType({ headers }: IncomingMessage): void {
  const encoding = headers['content-encoding']
  if (encoding !== undefined && encoding.toLowerCase() !== 'identity') {
    throw new GatewayError('unsupported_media_type', `content-encoding must be identity, not ${encoding.slice(0, 32)}`)
  }
  const type = headers['content-type'] ?? 'missing'
  if (/^application\/(?:[\w.+-]+\+)?json\s*(?:;|$)/i.test(type)) return
  throw new GatewayError('unsupported_media_type', `content-type must be application/json, not ${type.slice(0, 64)}`)
}

function tooLarge(maxBytes: number): GatewayError {
  return new GatewayError('body_too_large', `the body is larger than the limit of ${maxBytes} bytes`)
}

function readBody(incoming: IncomingMessage, maxBytes: number): Promise<Buffer> {
  if (Number(incoming.headers['content-length'] ?? 0) > maxBytes) return Promise.reject(tooLarge(maxBytes))
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let size = 0
    const stop = (): void => {
      incoming.off('data', take).off('end', end).off('error', gone).off('close', gone)
    }
    const take = (chunk: Buffer): void => {
      size += chunk.length
      if (size <= maxBytes) {
        chunks.push(chunk)
        return
      }
      stop()
      incoming.pause()
      reject(tooLarge(maxBytes))
    }
    const end = (): void => {
      stop()
      resolve(chunks.length === 1 && chunks[0] ? chunks[0] : Buffer.concat(chunks))
    }
    const gone = (): void => {
      stop()
      reject(new GatewayError('cancelled', 'the client went away before the end of its request'))
    }
    incoming.on('data', take).on('end', end).on('error', gone).on('close', gone)
    if (incoming.destroyed) gone()
  })
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    const detail = error instanceof Error ? error.message : 'syntax error'
    throw new GatewayError('invalid_request', `the body is not valid JSON: ${detail}`, { cause: error })
  }
}

/** True when a JSON value has more than so many levels of objects and arrays; nothing below those is looked at. */
export function isDeeper(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return false
  if (levels === 0) return true
  for (const inner of Array.isArray(value) ? value : Object.values(value)) if (isDeeper(inner, levels - 1)) return true
  return false
}
