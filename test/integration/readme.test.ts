/** The README's examples, as written but for the addresses, and what a newcomer without tools is told. */
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { GatewayProcess } from '../support/gateway-process.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const commands = [...readFileSync(`${root}README.md`, 'utf8').matchAll(/```sh\n([\s\S]*?)```/g)].map(
  ([, text]) => text ?? '',
)
const hasCurl = spawnSync('curl', ['--version']).status === 0

describe('the examples of the README', () => {
  let box: GatewayProcess
  beforeAll(async () => {
    box = await GatewayProcess.startShipped().ready()
  })
  afterAll(() => box.close())

  function run(start: string): string {
    const command = commands.find((text) => text.startsWith(start))
    if (command === undefined) throw new Error(`the README has no ${start} example`)
    const here = command
      .replaceAll('127.0.0.1:8080', new URL(box.url).host)
      .replaceAll('127.0.0.1:8081', box.grpcAddress)
    return execFileSync('sh', ['-c', here], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  }

  it.skipIf(!hasCurl)('streams a chat to curl (skipped where curl is not installed)', () => {
    const events = run('curl').trim().split('\n\n')
    expect(events.at(-1)).toBe('data: [DONE]')
    expect(events[0]).toContain('"role":"assistant"')
    expect(events.length).toBeGreaterThan(4)
  })

  it.each(['node examples/grpc.mjs', 'node examples/websocket.mjs'])('%s prints the answer', (start) => {
    expect(run(start)).toContain('Paris')
  })

  it('prints a curl line that works', () => {
    const line = box.stdout.split('\n').find((text) => text.trim().startsWith('curl')) ?? ''
    expect(line).toContain(box.url)
    expect(line).toContain('/v1/chat/completions')
  })
})

describe('setting up', () => {
  it('says in one line what to install where a compiler and CMake are missing', () => {
    const script = `${root}scripts/build-native.mjs`
    const { status, stderr } = spawnSync(process.execPath, [script], { env: { PATH: '/nowhere' }, encoding: 'utf8' })
    expect(status).toBe(1)
    expect(stderr.trim().split('\n')).toHaveLength(1)
    expect(stderr).toMatch(/CMake.*C\+\+20 compiler/)
  })
})
