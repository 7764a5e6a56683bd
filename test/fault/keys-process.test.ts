/** Keys with a real gateway process: refused exposure, the commands, and a file that changes while it serves. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { GatewayProcess } from '../support/gateway-process.js'

const CLI = fileURLToPath(new URL('../../gateway/cli/main.ts', import.meta.url))

let folder: string
let config: string
let gateway: GatewayProcess | undefined

/** Runs the program to its end. */
function edgeshift(...args: string[]) {
  return spawnSync(process.execPath, ['--import', 'tsx', CLI, ...args], { encoding: 'utf8' })
}

function configure(server: string): void {
  writeFileSync(config, `server: ${server}\nmodels: [{ id: m, variants: [{ precision: int4, path: x.gguf }] }]\n`)
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'es-keys-'))
  config = join(folder, 'models.yaml')
})
afterEach(async () => {
  await gateway?.close()
  gateway = undefined
  rmSync(folder, { recursive: true })
})

it('is not exposed without keys, and says what to do', () => {
  configure('{ http: "0.0.0.0:0" }')
  const { status, stderr } = edgeshift('serve', '--config', config)
  expect(status).toBe(1)
  expect(stderr).toContain(
    'models.yaml:1:17: server.http: 0.0.0.0 is not a loopback address, and off loopback API keys',
  )
  configure('{ http: "0.0.0.0:0", api_keys_file: keys.yaml }')
  const missing = edgeshift('serve', '--config', config)
  expect([missing.status, missing.stderr]).toEqual([1, expect.stringContaining('keys.yaml: no such file')])
}, 60_000)

it('takes keys that are made and revoked while it serves', async () => {
  const file = join(folder, 'keys.yaml')
  configure('{ api_keys_file: keys.yaml }')
  const first = edgeshift('keys', 'create', '--config', config, '--name', 'first').stdout.trim()
  const server = `{ http: "127.0.0.1:0", grpc: "127.0.0.1:0", api_keys_file: ${JSON.stringify(file)} }`
  const running = GatewayProcess.start({}, server)
  gateway = running
  await running.ready()
  const asks = async (key: string): Promise<number> => {
    const response = await fetch(`${running.url}/v1/models`, { headers: { authorization: `Bearer ${key}` } })
    return response.status
  }
  const reads = (): number => running.log.filter(({ msg }) => msg === 'API keys read again').length
  expect(await asks(first)).toBe(200)

  const second = edgeshift('keys', 'create', '--config', config, '--name', 'second').stdout.trim()
  await running.until(() => reads() === 1, 'the new key')
  expect(await asks(second)).toBe(200)
  expect(edgeshift('keys', 'list', '--config', config).stdout).toMatch(/first[^]*second/)

  expect(edgeshift('keys', 'revoke', '--config', config, 'first').stdout).toMatch(/^revoked \w+ \(first\)/)
  await running.until(() => reads() === 2, 'the revocation')
  expect([await asks(first), await asks(second)]).toEqual([401, 200])

  const good = readFileSync(file, 'utf8')
  writeFileSync(file, 'keys: [{ id: a }]\n')
  const refused = () => running.log.find(({ msg }) => msg === 'API keys not changed')
  await running.until(() => refused() !== undefined, 'the bad edit')
  expect(refused()?.['problem']).toMatch(/keys\.yaml:1:8: keys\[0\]\.name: missing/)
  expect([await asks(first), await asks(second)]).toEqual([401, 200])

  // An admin sees it where the box's state is; a good edit takes it away.
  const remarks = async (key: string): Promise<unknown> => {
    const response = await fetch(`${running.url}/health`, { headers: { authorization: `Bearer ${key}` } })
    return ((await response.json()) as { config_remarks?: string[] }).config_remarks
  }
  writeFileSync(file, good)
  const third = edgeshift('keys', 'create', '--config', config, '--name', 'third', '--admin').stdout.trim()
  while ((await asks(third)) !== 200);
  expect([await remarks(second), await remarks(third)]).toEqual([undefined, undefined])
  writeFileSync(file, 'keys: [{ id: a }]\n')
  await running.until(() => running.log.filter(({ msg }) => msg === 'API keys not changed').length === 2, 'a bad edit')
  expect(await remarks(second)).toBeUndefined()
  expect(await remarks(third)).toEqual(
    expect.arrayContaining([expect.stringMatching(/^edit refused: .*keys\.yaml:1:8: keys\[0\]\.name: missing/)]),
  )
}, 120_000)
