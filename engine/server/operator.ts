import { type sendUnaryData, type ServerUnaryCall, status as grpcStatus } from '@grpc/grpc-js'
import type { VariantStatus } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Engine, VariantLoader } from '../engine.js'
import { ResidencyError, type ResidencyFault } from '../residency/residency-error.js'
import { variantStatus } from './status.js'

const CODES: Record<ResidencyFault, grpcStatus> = {
  not_found: grpcStatus.NOT_FOUND,
  busy: grpcStatus.FAILED_PRECONDITION,
  pinned: grpcStatus.FAILED_PRECONDITION,
  does_not_fit: grpcStatus.RESOURCE_EXHAUSTED,
  load_failed: grpcStatus.UNAVAILABLE,
}

/** Does something to one variant and answers with how it is then. */
export function operate<T extends { variant: string }>(
  engine: Engine,
  { request }: ServerUnaryCall<T, VariantStatus>,
  reply: sendUnaryData<VariantStatus>,
  act: (request: T, loader: VariantLoader) => Promise<void>,
): void {
  answer(engine, request, act).then(
    (status) => reply(null, status),
    (error: unknown) => reply({ code: codeOf(error), details: error instanceof Error ? error.message : '' }),
  )
}

async function answer<T extends { variant: string }>(
  engine: Engine,
  request: T,
  act: (request: T, loader: VariantLoader) => Promise<void>,
): Promise<VariantStatus> {
  const { loader } = engine
  if (!loader) throw new ResidencyError('load_failed', 'this engine loads nothing on demand')
  await act(request, loader)
  const variant = engine.variants.get(request.variant)
  if (!variant) throw new ResidencyError('not_found', 'it is not configured any more')
  return variantStatus(variant, loader.outlook(variant))
}

function codeOf(error: unknown): grpcStatus {
  return error instanceof ResidencyError ? CODES[error.fault] : grpcStatus.INTERNAL
}
