/** A budget that holds only the last rung: what is asked for better is answered there, with the reason, until it grows. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { GatewayProcess } from '../support/gateway-process.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { testDevice } from '../support/test-device.js'

/** Room for the runtime, one full sequence's KV and int4, and for everything. */
const SMALL = testDevice({ cpu: 0.23, cuda: 0.33 }).yaml
const LARGE = testDevice({ cpu: 2, cuda: 2 }).yaml
let box: GatewayProcess

const config = (device: string): string => `
server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0", engine_wait: 60s }
devices: [${device}]
models:
  - id: smollm2
    max_model_len: 256
    variants: [{ precision: fp16, path: ${JSON.stringify(SMOLLM2_FILE)} }, { precision: int8, from: fp16 }, { precision: int4, from: fp16 }]
    policy: { recover_after: 100ms, min_dwell: 100ms }
`

beforeAll(async () => {
  box = await GatewayProcess.startShipped(() => config(SMALL)).ready()
}, 60_000)
afterAll(() => box.close())

async function ask(model: string, fields: object = {}): Promise<{ status: number; variant: string; reason: string }> {
  const response = await fetch(`${box.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model, prompt: 'Hello', max_tokens: 2, ...fields }),
  })
  await response.text()
  const header = (name: string): string => response.headers.get(`x-edgeshift-${name}`) ?? ''
  return { status: response.status, variant: header('variant'), reason: header('reason') }
}

it('serves fp16 at int4 with the reason, refuses it where nothing else will do, and goes up when memory grows', async () => {
  const squeezed = await ask('smollm2:fp16')
  expect(squeezed).toMatchObject({ status: 200, variant: 'smollm2:int4' })
  expect(squeezed.reason).toMatch(/^degraded_oom/)
  expect(await ask('smollm2:fp16', { degrade: 'forbid' })).toMatchObject({ status: 503 })
  const file = join(box.tmp, 'models.yaml')
  writeFileSync(file, config(LARGE))
  await box.until(
    () => box.log.some(({ msg, memory }) => msg === 'configuration reloaded' && memory !== undefined),
    'the edit',
  )
  let served = squeezed
  while (served.variant !== 'smollm2:fp16') {
    expect(served).toMatchObject({ status: 200, variant: 'smollm2:int4' })
    expect(served.reason).toMatch(/^(degraded_oom|recovering): /)
    served = await ask('smollm2:fp16')
  }
  expect(served).toMatchObject({ status: 200, reason: 'requested: as asked for' })
  // The gateway hears a moment later that the load has ended.
  while (served.reason !== 'highest: the best rung') {
    served = await ask('smollm2')
    expect(served.reason).toMatch(/^(loading|highest): /)
  }
  expect(served.variant).toBe('smollm2:fp16')
  expect(await ask('smollm2:fp16', { degrade: 'forbid' })).toMatchObject({ status: 200, variant: 'smollm2:fp16' })
}, 60_000)
