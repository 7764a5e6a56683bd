import { status as grpcStatus } from '@grpc/grpc-js'

/**
 * The one error catalogue: code -> HTTP status, gRPC status, OpenAI error type, WebSocket close code where the
 * error ends the socket. No handler builds an error of its own.
 */
const CATALOGUE = {
  invalid_request: { http: 400, grpc: grpcStatus.INVALID_ARGUMENT, type: 'invalid_request_error' },
  unsupported_parameter: { http: 400, grpc: grpcStatus.INVALID_ARGUMENT, type: 'invalid_request_error' },
  context_length_exceeded: { http: 400, grpc: grpcStatus.INVALID_ARGUMENT, type: 'invalid_request_error' },
  no_rung_allowed: { http: 400, grpc: grpcStatus.INVALID_ARGUMENT, type: 'invalid_request_error' },
  template_failed: { http: 400, grpc: grpcStatus.INVALID_ARGUMENT, type: 'invalid_request_error' },
  unauthorized: { http: 401, grpc: grpcStatus.UNAUTHENTICATED, type: 'authentication_error' },
  forbidden: { http: 403, grpc: grpcStatus.PERMISSION_DENIED, type: 'permission_error' },
  model_not_found: { http: 404, grpc: grpcStatus.NOT_FOUND, type: 'invalid_request_error' },
  stream_not_found: { http: 404, grpc: grpcStatus.NOT_FOUND, type: 'invalid_request_error' },
  not_found: { http: 404, grpc: grpcStatus.UNIMPLEMENTED, type: 'invalid_request_error' },
  method_not_allowed: { http: 405, grpc: grpcStatus.UNIMPLEMENTED, type: 'invalid_request_error' },
  deadline_exceeded: { http: 408, grpc: grpcStatus.DEADLINE_EXCEEDED, type: 'timeout_error' },
  conflict: { http: 409, grpc: grpcStatus.FAILED_PRECONDITION, type: 'invalid_request_error' },
  body_too_large: { http: 413, grpc: grpcStatus.RESOURCE_EXHAUSTED, type: 'invalid_request_error' },
  unsupported_media_type: { http: 415, grpc: grpcStatus.INVALID_ARGUMENT, type: 'invalid_request_error' },
  poison_request: { http: 422, grpc: grpcStatus.FAILED_PRECONDITION, type: 'server_error' },
  rate_limit_exceeded: { http: 429, grpc: grpcStatus.RESOURCE_EXHAUSTED, type: 'rate_limit_error' },
  queue_full: { http: 429, grpc: grpcStatus.RESOURCE_EXHAUSTED, type: 'rate_limit_error' },
  cancelled: { http: 499, grpc: grpcStatus.CANCELLED, type: 'request_cancelled' },
  internal: { http: 500, grpc: grpcStatus.INTERNAL, type: 'server_error' },
  engine_failed: { http: 502, grpc: grpcStatus.UNAVAILABLE, type: 'server_error' },
  degrade_forbidden: { http: 503, grpc: grpcStatus.UNAVAILABLE, type: 'server_error' },
  engine_unavailable: { http: 503, grpc: grpcStatus.UNAVAILABLE, type: 'server_error' },
  loading: { http: 503, grpc: grpcStatus.UNAVAILABLE, type: 'server_error' },
  shutting_down: { http: 503, grpc: grpcStatus.UNAVAILABLE, type: 'server_error' },
  insufficient_memory: { http: 507, grpc: grpcStatus.RESOURCE_EXHAUSTED, type: 'server_error' },
} as const

/** A code of the catalogue. */
export type ErrorCode = keyof typeof CATALOGUE

/** Details a client may get beside code and message. */
interface ErrorDetails {
  /** The request field at fault, as the client wrote it ("messages[0].role"). */
  param?: string
  /** Milliseconds after which a retry is likely to succeed. */
  retryAfterMs?: number
  cause?: unknown
}

/** Every failure a client can see. Anything else that is thrown becomes `internal` at the edge. */
export class GatewayError extends Error {
  readonly code: ErrorCode
  readonly param: string | undefined
  readonly retryAfterMs: number | undefined

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, { cause: details.cause })
    this.name = 'GatewayError'
    this.code = code
    this.param = details.param
    this.retryAfterMs = details.retryAfterMs
  }

  get httpStatus(): number {
    return CATALOGUE[this.code].http
  }

  get grpcStatus(): grpcStatus {
    return CATALOGUE[this.code].grpc
  }

  /** The OpenAI error object, used on HTTP, in-band in SSE and in WebSocket error messages. */
  toObject(): { error: { message: string; type: string; param: string | null; code: ErrorCode } } {
    return {
      error: { message: this.message, type: CATALOGUE[this.code].type, param: this.param ?? null, code: this.code },
    }
  }
}

/** Every code, in the catalogue's order. */
export const ERROR_CODES: readonly ErrorCode[] = Object.keys(CATALOGUE).filter(isErrorCode)

/** True when `code` is in the catalogue (codes arrive as strings from the engine). */
export function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(CATALOGUE, code)
}

/** Turns whatever was thrown into a GatewayError; unknown failures hide their text from the client. */
export function toGatewayError(thrown: unknown): GatewayError {
  if (thrown instanceof GatewayError) return thrown
  return new GatewayError('internal', 'internal error', { cause: thrown })
}
