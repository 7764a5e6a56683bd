/** Administration of the embedded model with the real engine. */
import { afterEach, expect, it } from 'vitest'
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'

let gateway: GatewayProcess | undefined
afterEach(() => gateway?.close())

it('unloads, pins and loads a rung, which a request loads by itself, too', async () => {
  const running = GatewayProcess.startShipped(onlyRung('int4'))
  gateway = running
  await running.ready()
  const admin = async (action: string, model = 'smollm2'): Promise<object> => {
    const response = await fetch(`${running.url}/admin/models/${action}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model }),
    })
    return (await response.json()) as object
  }
  const used = async (): Promise<number> => {
    const response = await fetch(`${running.url}/admin/models`)
    const { devices } = (await response.json()) as { devices: { used_bytes: number }[] }
    return devices[0]?.used_bytes ?? 0
  }
  expect(await admin('load')).toMatchObject({ name: 'smollm2:int4', state: 'ready' })
  const loaded = await used()
  expect(await admin('pin')).toMatchObject({ pinned: true })
  process.kill(running.enginePids.at(-1) ?? 0, 'SIGKILL')
  await running.until(() => running.enginePids.length === 2, 'the engine is started again')
  // Its new engine knows what operators pinned.
  let again = await admin('load')
  while ('error' in again) again = await admin('load')
  expect(again).toMatchObject({ state: 'ready', pinned: true })
  expect(await admin('unload')).toMatchObject({ error: { code: 'conflict', message: expect.stringContaining('pin') } })
  expect(await admin('unpin')).toMatchObject({ pinned: false })
  expect(await admin('unload')).toMatchObject({ state: 'unloaded' })
  expect(await used()).toBeLessThan(loaded - 50_000_000)
  const answer = await fetch(`${running.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'smollm2', prompt: 'The capital of France is', max_tokens: 4, temperature: 0 }),
  })
  expect(answer.status).toBe(200)
  expect(await admin('load')).toMatchObject({ state: 'ready', loads: 2 })
  expect(await used()).toBe(loaded)
  expect(await admin('load', 'smollm2:fp16')).toMatchObject({ error: { code: 'model_not_found' } })
}, 120_000)
