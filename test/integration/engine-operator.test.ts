/** Load, unload and pin over gRPC: what they answer and how they refuse. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type ServiceError, status as grpcStatus } from '@grpc/grpc-js'
import { pino } from 'pino'
import { afterAll, expect, it } from 'vitest'
import { FinishReason, type VariantStatus, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { listen } from '../../engine/server/listen.js'
import { EngineService } from '../../engine/server/service.js'
import { openClient } from '../../gateway/engine-client/connect.js'
import { Collector, submitOf } from '../support/fake-engine.js'
import { fakeResidency, UNIT } from '../support/fake-native.js'

const folder = mkdtempSync(join(tmpdir(), 'es-operator-'))
afterAll(() => rmSync(folder, { recursive: true }))

type Reply = (error: ServiceError | null, status: VariantStatus) => void

/** The variant's status, or the code of the refusal. */
function call(run: (reply: Reply) => void): Promise<VariantStatus | number> {
  return new Promise((resolve) => run((error, status) => resolve(error ? error.code : status)))
}

it('loads, unloads and pins variants, and says by its code why it does not', async () => {
  const fake = fakeResidency({
    variants: { 'a:int4': { weights: 60 }, 'b:int4': { weights: 60 }, 'c:int4': { weights: 200 } },
  })
  const service = new EngineService(fake.engine, async () => undefined, pino({ level: 'silent' }))
  const socket = join(folder, 'engine.sock')
  const listener = await listen(socket, service.handlers)
  const client = openClient(socket)
  const load = (variant: string) => call((reply) => client.load({ variant }, reply))
  const unload = (variant: string) => call((reply) => client.unload({ variant }, reply))
  const pin = (variant: string, pinned: boolean) => call((reply) => client.pin({ variant, pinned }, reply))

  expect(await load('a:int4')).toMatchObject({ state: VariantState.READY, loads: 1, neededBytes: 60.5 * UNIT })
  expect(await load('b:int4')).toMatchObject({ state: VariantState.READY, loads: 1 })
  expect(await pin('b:int4', true)).toMatchObject({ pinned: true })
  expect(await Promise.all([load('x'), load('c:int4'), load('a:int4'), unload('b:int4')])).toEqual([
    grpcStatus.NOT_FOUND,
    grpcStatus.RESOURCE_EXHAUSTED,
    grpcStatus.RESOURCE_EXHAUSTED,
    grpcStatus.FAILED_PRECONDITION,
  ])
  expect(await pin('b:int4', false)).toMatchObject({ pinned: false })
  const busy = new Collector()
  fake.engine.submit(submitOf(1, [1], { variant: 'b:int4', maxTokens: 20 }), busy)
  expect(await unload('b:int4')).toBe(grpcStatus.FAILED_PRECONDITION)
  await busy.done
  expect(await unload('b:int4')).toMatchObject({ state: VariantState.UNLOADED, loadable: true, queueable: false })

  client.close()
  service.close()
  await listener.close()
  await fake.engine.stop(FinishReason.CANCELLED)
  await fake.residency.stop()
})
