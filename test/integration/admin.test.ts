/** Administration over HTTP and by the command. */
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { serveHttp, type TestServer } from '../support/http-server.js'
import { type KeyedServices, keyedServices } from '../support/keyed-services.js'

const CLI = fileURLToPath(new URL('../../gateway/cli/main.ts', import.meta.url))

let services: KeyedServices
let server: TestServer
beforeEach(async () => {
  services = keyedServices({ user: {}, boss: { admin: true }, narrow: { admin: true, models: ['other'] } })
  server = await serveHttp(services)
})
afterEach(() => server.close())

async function ask(path: string, key: string | undefined, body?: object): Promise<{ status: number; json: unknown }> {
  const response = await fetch(server.url + path, {
    method: body ? 'POST' : 'GET',
    headers: {
      ...(key !== undefined && { authorization: `Bearer ${services.keys[key]}` }),
      ...(body && { 'content-type': 'application/json' }),
    },
    ...(body && { body: JSON.stringify(body) }),
  })
  return { status: response.status, json: await response.json() }
}

it('is for admin keys alone', async () => {
  for (const action of ['load', 'unload', 'pin', 'unpin']) {
    const body = { model: 'fake:int4' }
    expect((await ask(`/admin/models/${action}`, undefined, body)).status).toBe(401)
    expect((await ask(`/admin/models/${action}`, 'user', body)).status).toBe(403)
    // An admin key of some models is one for those.
    expect((await ask(`/admin/models/${action}`, 'narrow', body)).status).toBe(403)
  }
  expect([(await ask('/admin/models', undefined)).status, (await ask('/admin/models', 'user')).status]).toEqual([
    401, 403,
  ])
})

it('tells what is in memory, and changes it', async () => {
  const { json } = await ask('/admin/models', 'boss')
  expect(json).toMatchObject({
    variants: [
      { name: 'fake:fp16', model: 'fake', state: 'unloaded', needed_bytes: expect.any(Number), pinned: false },
      { name: 'fake:int4', state: 'ready' },
    ],
    devices: [
      {
        id: 'cpu0',
        budget_bytes: 4_000_000_000,
        used_bytes: 1024,
        ledger: [{ kind: 'weights', owner: 'fake:int4', bytes: 1024 }],
      },
    ],
  })
  const model = 'fake:int4'
  expect((await ask('/admin/models/pin', 'boss', { model })).json).toMatchObject({ name: model, pinned: true })
  const pinned = await ask('/admin/models/unload', 'boss', { model })
  expect(pinned).toMatchObject({ status: 409, json: { error: { code: 'conflict', message: `${model} is pinned` } } })
  expect((await ask('/admin/models/unpin', 'boss', { model })).json).toMatchObject({ pinned: false })
  expect((await ask('/admin/models/unload', 'boss', { model })).json).toMatchObject({ state: 'unloaded' })
  expect((await ask('/admin/models/load', 'boss', { model })).json).toMatchObject({ state: 'ready' })
})

it('names what is wrong with a request', async () => {
  const failure = async (body: object) => (await ask('/admin/models/load', 'boss', body)).json
  expect(await failure({ model: 'fake' })).toMatchObject({
    error: { code: 'invalid_request', param: 'model', message: "name one rung of 'fake': fake:fp16, fake:int4" },
  })
  expect(await failure({ model: 'none' })).toMatchObject({ error: { code: 'model_not_found' } })
  expect(await failure({ variant: 'fake:int4' })).toMatchObject({ error: { code: 'unsupported_parameter' } })
  const large = await ask('/admin/models/load', 'boss', { model: 'fake:fp16' })
  expect(large).toMatchObject({ status: 507, json: { error: { code: 'insufficient_memory' } } })
})

/** Runs `edgeshift models` against the server with a key. */
function command(key: string, ...args: string[]): Promise<{ code: number | null; out: string; err: string }> {
  const child = spawn(process.execPath, ['--import', 'tsx', CLI, 'models', ...args, '--url', server.url], {
    env: { ...process.env, EDGESHIFT_KEY: services.keys[key] ?? '' },
  })
  let out = ''
  let err = ''
  child.stdout.on('data', (text) => (out += String(text)))
  child.stderr.on('data', (text) => (err += String(text)))
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, out, err })))
}

it('has a command that says the same', async () => {
  services.report.config_remarks = ['models.yaml:1:17: server.http: takes effect at the next start']
  const list = await command('boss', 'list')
  expect(list.out).toMatch(/^fake:fp16 +unloaded +2\.00 GB +cpu0$/m)
  expect(list.out).toMatch(/^cpu0: 1\.02 kB of 4\.00 GB \(weights 1\.02 kB\)$/m)
  expect(list.out).toMatch(/\n\nmodels\.yaml:1:17: server\.http: takes effect at the next start\n$/)
  expect((await command('boss', 'pin', 'fake:int4')).out).toBe('fake:int4  ready  560 MB  cpu0  pinned\n')
  expect(await command('boss', 'unload', 'fake:int4')).toEqual({
    code: 1,
    out: '',
    err: 'conflict: fake:int4 is pinned\n',
  })
  expect((await command('user', 'list')).err).toBe('forbidden: this needs a key with admin: true\n')
}, 60_000)
