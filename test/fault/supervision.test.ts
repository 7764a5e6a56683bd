import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { DEFAULT_RESTART_POLICY } from '../../gateway/engine-client/restart-policy.js'
import { EngineSupervisor } from '../../gateway/engine-client/supervisor.js'
import { Waiters } from '../../gateway/engine-client/waiters.js'
import { eventually, GatewayProcess, isRunning } from '../support/gateway-process.js'
import { Turn } from '../support/turn.js'

const running: GatewayProcess[] = []

function start(...args: Parameters<typeof GatewayProcess.start>): GatewayProcess {
  const gateway = GatewayProcess.start(...args)
  running.push(gateway)
  return gateway
}

/** What is left of sockets in the gateway's temporary folder. */
const sockets = ({ tmp }: GatewayProcess): string[] =>
  readdirSync(tmp, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.sock'))

const folders = ({ tmp }: GatewayProcess): string[] => readdirSync(tmp).filter((name) => name.startsWith('edgeshift-'))

/** Reads one chunk, so that the answer is known to run. */
async function begin(response: Response): Promise<() => Promise<string>> {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader()
  let text = (await reader?.read())?.value ?? ''
  return async () => {
    for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) text += part.value
    return text
  }
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((gateway) => gateway.close()))
})

describe('supervision', { timeout: 60_000 }, () => {
  it('stops while the engine has not described itself yet', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'es-stop-'))
    const hold = join(folder, 'hold')
    writeFileSync(hold, '')
    vi.stubEnv('HOLD_DESCRIBE', hold)
    const program = new URL('../support/scripted-engine.ts', import.meta.url).pathname
    const config = join(folder, 'models.yaml')
    writeFileSync(config, 'models: [{ id: m, variants: [{ precision: int4, path: none }] }]')
    const times = { startTimeoutMs: 30_000, heartbeatMs: 50, hangAfterMs: 60_000, stopGraceMs: 5000 }
    const command = { command: process.execPath, args: ['--import', 'tsx', program] }
    const files = { configFile: config, lastGoodFile: config, socketDir: folder }
    const connected = new Turn()
    const ignore = (): void => undefined
    const listener = { onConnected: async () => connected.reach(), onStep: ignore, onRestart: ignore }
    const options = {
      command,
      place: 0,
      device: undefined,
      pins: { args: [] },
      ...files,
      restart: DEFAULT_RESTART_POLICY,
      ...times,
    }
    const supervisor = new EngineSupervisor(options, listener, new Waiters(), pino({ level: 'silent' }))
    try {
      supervisor.start()
      await connected.reached
      const stopped = supervisor.stop()
      rmSync(hold)
      await stopped
      expect([supervisor.state, supervisor.session]).toEqual(['stopped', undefined])
    } finally {
      vi.unstubAllEnvs()
      rmSync(folder, { recursive: true })
    }
  })

  it('goes on with requests in flight when the engine is killed, and serves again', async () => {
    const gateway = await start({ STEP_MS: '20' }).ready()
    const rest = await begin(await gateway.chat(100))
    const [first = 0] = gateway.enginePids
    process.kill(first, 'SIGKILL')
    const stream = await rest()
    const text = stream.matchAll(/"content":"([^"]*)"/g)
    expect([...text].map(([, piece]) => piece).join('')).toBe('The quick brown fox. '.repeat(5).slice(0, 100))
    expect(stream.match(/"degraded"/g)).toHaveLength(1)
    expect(stream).toContain('[DONE]')
    const again = await gateway.chat(3)
    expect(again.status).toBe(200)
    expect(await again.text()).toContain('[DONE]')
    expect(gateway.enginePids).toHaveLength(2)
    expect(isRunning(first)).toBe(false)
    expect(sockets(gateway)).toHaveLength(1)
  })

  it('kills an engine that does not answer any more, and goes on with its requests on the next', async () => {
    const server = '{ http: "127.0.0.1:0", grpc: "127.0.0.1:0", engine_timeout: 1s }'
    const gateway = await start({ STEP_MS: '20' }, server).ready()
    const rest = await begin(await gateway.chat(100))
    const [first = 0] = gateway.enginePids
    process.kill(first, 'SIGSTOP')
    const stream = await rest()
    const text = [...stream.matchAll(/"content":"([^"]*)"/g)].map(([, piece]) => piece).join('')
    expect(text).toBe('The quick brown fox. '.repeat(5).slice(0, 100))
    expect(stream).toContain('[DONE]')
    expect(gateway.enginePids).toHaveLength(2)
    expect(isRunning(first)).toBe(false)
  })

  it('leaves no engine and no socket when it is killed itself, and cleans up at the next start', async () => {
    const gateway = await start({ STEP_MS: '20' }).ready()
    await begin(await gateway.chat(5000))
    const [engine = 0] = gateway.enginePids
    gateway.child.kill('SIGKILL')
    await gateway.exited
    await eventually(() => !isRunning(engine), 'the engine ends')
    expect(sockets(gateway)).toEqual([])
    const [stale] = folders(gateway)
    const next = await start({ TMPDIR: gateway.tmp }).ready()
    expect(folders(gateway)).not.toContain(stale)
    expect(folders(gateway)).toHaveLength(1)
    next.child.kill('SIGTERM')
    expect(await next.exited).toEqual({ code: 0, signal: null })
    expect(folders(gateway)).toEqual([])
  })

  it('lets running answers end on SIGTERM, then exits with 0', async () => {
    const gateway = await start({ STEP_MS: '10' }).ready()
    const rest = await begin(await gateway.chat(40))
    const [engine = 0] = gateway.enginePids
    gateway.child.kill('SIGTERM')
    expect(await rest()).toContain('[DONE]')
    expect(await gateway.exited).toEqual({ code: 0, signal: null })
    expect(isRunning(engine)).toBe(false)
    expect(folders(gateway)).toEqual([])
  })

  it('exits at once on a second signal', async () => {
    const gateway = await start({ STEP_MS: '20' }).ready()
    const rest = await begin(await gateway.chat(5000))
    gateway.child.kill('SIGINT')
    await gateway.until(() => gateway.log.some(({ msg }) => msg === 'stopping'), 'it has taken the first one')
    gateway.child.kill('SIGINT')
    expect(await gateway.exited).toEqual({ code: 1, signal: null })
    await rest().catch(() => undefined)
    expect(folders(gateway)).toEqual([])
  })

  it('says in one line that a port is taken, and exits with 1', async () => {
    const taken = createServer()
    await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', resolve))
    const address = taken.address()
    const port = typeof address === 'object' ? address?.port : undefined
    const gateway = start({}, `{ http: "127.0.0.1:${port}", grpc: "127.0.0.1:0" }`)
    expect(await gateway.exited).toEqual({ code: 1, signal: null })
    const lines = gateway.log.filter((line) => line.level === undefined).map(({ msg }) => msg)
    expect(lines).toEqual([`cannot serve HTTP on 127.0.0.1:${port}: another program listens there already`])
    expect(folders(gateway)).toEqual([])
    await new Promise((resolve) => taken.close(resolve))
  })

  it('reports an engine that does not start, and exits with 1', async () => {
    const gateway = start({ FAIL: 'the disk is on fire' })
    expect(await gateway.exited).toEqual({ code: 1, signal: null })
    const lines = gateway.log.map(({ msg }) => String(msg))
    expect(lines).toContain('the engine does not start:')
    expect(lines.some((line) => line.includes('the disk is on fire'))).toBe(true)
    expect(folders(gateway)).toEqual([])
  })
})
