import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { decodeChat } from '../../gateway/protocols/decode.js'
import { chatCall } from '../../gateway/protocols/grpc/decode.js'
import type { NeedFields } from '../../gateway/protocols/needs.js'
import { type Origin, readOrigin } from '../../gateway/protocols/origin.js'
import type { GenerateRequest } from '../../gateway/request.js'
import { ChatRequest, GenerateOptions } from '../../proto/gen/edgeshift/v1/gateway.js'
import { fakeServices } from '../support/fake-services.js'

const services = fakeServices()
const messages = [{ role: 'user', content: 'hi' }]
const NO_HEADERS: Origin = { id: 'r', tenant: '' }

type Fields = NeedFields & { deadline_ms?: number }

/** What a WebSocket chat or an HTTP body with these fields asks for, under these headers. */
const http = (fields: object, origin = NO_HEADERS): GenerateRequest =>
  decodeChat({ model: 'fake', messages, ...fields }, origin, services).requests[0]

/** The same as it comes over the wire by gRPC. */
function grpc(fields: Fields, origin = NO_HEADERS): GenerateRequest {
  const options = GenerateOptions.fromPartial({
    ...(fields.precision && { precision: fields.precision }),
    ...(fields.min_precision && { minPrecision: fields.min_precision }),
    ...(fields.memory_limit_gb !== undefined && { memoryLimitGb: fields.memory_limit_gb }),
    ...(fields.speed_priority !== undefined && { speedPriority: fields.speed_priority }),
    ...(fields.degrade && { degrade: fields.degrade }),
    ...(fields.deadline_ms !== undefined && { deadlineMs: fields.deadline_ms }),
  })
  const request = ChatRequest.fromPartial({ model: 'fake', messages: [{ role: 'user', content: 'hi' }], options })
  return chatCall(ChatRequest.decode(ChatRequest.encode(request).finish()), origin, services).requests[0]
}

/** The fields as headers or metadata. */
function headers(fields: Fields): Origin {
  const named = new Map(
    Object.entries(fields).map(([field, value]) => [`x-edgeshift-${field.replaceAll('_', '-')}`, String(value)]),
  )
  return readOrigin((name) => named.get(name), '', 'r')
}

const wish = fc.constantFrom('high' as const, 'medium' as const, 'low' as const, 'fp16' as const, 'int8' as const)
const anyFields: fc.Arbitrary<Fields> = fc.record(
  {
    precision: wish,
    min_precision: wish,
    memory_limit_gb: fc.integer({ min: 1, max: 1_000_000 }).map((mb) => mb / 1000),
    speed_priority: fc.integer({ min: 0, max: 100 }).map((percent) => percent / 100),
    degrade: fc.constantFrom('allow' as const, 'forbid' as const),
    deadline_ms: fc.integer({ min: 1, max: 86_400_000 }),
  },
  { requiredKeys: [] },
)

describe('what a request asks of its rung', () => {
  it('is the same as fields, headers, gRPC options and metadata', () => {
    fc.assert(
      fc.property(anyFields, (fields) => {
        const expected = http(fields)
        expect(grpc(fields)).toEqual(expected)
        expect(http({}, headers(fields))).toEqual(expected)
        expect(grpc({}, headers(fields))).toEqual(expected)
      }),
      { numRuns: 200 },
    )
  })

  it('reads every field', () => {
    const fields = {
      precision: 'medium',
      min_precision: 'int4',
      memory_limit_gb: 1.5,
      speed_priority: 0.25,
      degrade: 'forbid',
      deadline_ms: 700,
    }
    expect(http(fields)).toMatchObject({
      precision: 'medium',
      minPrecision: 'int4',
      memoryLimitBytes: 1.5e9,
      speedPriority: 0.25,
      degrade: 'forbid',
      deadlineMs: 700,
    })
  })

  it('is what the body says before what the headers say; the earlier deadline holds', () => {
    const asked = http({ precision: 'low', deadline_ms: 900 }, headers({ precision: 'high', deadline_ms: 800 }))
    expect(asked).toMatchObject({ precision: 'low', deadlineMs: 800 })
    expect(http({ deadline_ms: 700 }, headers({ deadline_ms: 800 })).deadlineMs).toBe(700)
  })

  it.each([
    ['precision', 'int2'],
    ['min_precision', 'best'],
    ['memory_limit_gb', 0],
    ['memory_limit_gb', 'much'],
    ['speed_priority', 1.5],
    ['degrade', 'no'],
  ])('%s %j is refused by name on every protocol', (field, value) => {
    const header = `x-edgeshift-${field.replaceAll('_', '-')}`
    const paramOf = (work: () => unknown): string | undefined => {
      try {
        work()
      } catch (error) {
        if (error instanceof GatewayError && error.code === 'invalid_request') return error.param
      }
      return undefined
    }
    expect(paramOf(() => http({ [field]: value }))).toBe(field)
    expect(paramOf(() => headers({ [field]: value }))).toBe(header)
  })
})
