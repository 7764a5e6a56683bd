/** Catalogue errors -> gRPC status and trailers. */
import { Metadata, type StatusObject } from '@grpc/grpc-js'
import { toGatewayError } from '../../errors.js'

/** Trailer names; x-edgeshift-* are the HTTP headers' names too. */
const ERROR_CODE = 'edgeshift-error-code'
const ERROR_PARAM = 'edgeshift-error-param'
const RETRY_AFTER = 'retry-after-ms'
const VARIANT = 'x-edgeshift-variant'
const REASON = 'x-edgeshift-reason'
const DEGRADED = 'x-edgeshift-degraded'

/** What served the request, as initial metadata and as trailers; `degraded`: why it was not served where it began. */
export function servedMetadata(variant: string, reason: string, degraded?: string): Metadata {
  const metadata = new Metadata()
  metadata.set(VARIANT, printable(variant))
  metadata.set(REASON, printable(reason))
  if (degraded !== undefined) metadata.set(DEGRADED, degraded)
  return metadata
}

/** The status of a failed call; `served` adds its entries to the trailers. */
export function errorStatus(thrown: unknown, served?: Metadata): StatusObject {
  const error = toGatewayError(thrown)
  const metadata = served ? served.clone() : new Metadata()
  metadata.set(ERROR_CODE, error.code)
  if (error.param !== undefined) metadata.set(ERROR_PARAM, printable(error.param))
  if (error.retryAfterMs !== undefined) metadata.set(RETRY_AFTER, String(Math.ceil(error.retryAfterMs)))
  return { code: error.grpcStatus, details: wellFormed(error.message), metadata }
}

/** Header values are printable ASCII; anything else would make the library throw. */
function printable(text: string): string {
  return text.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 256)
}

/** The library percent-encodes the message and throws on a lone surrogate. */
function wellFormed(text: string): string {
  return Buffer.from(text, 'utf8').toString('utf8')
}
