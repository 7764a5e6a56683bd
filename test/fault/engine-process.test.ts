/** The engine as a process: what it says of its models, and that nothing of it is left however it ends. */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, describe, expect, it } from 'vitest'
import { openClient } from '../../gateway/engine-client/connect.js'
import {
  type Command,
  type EngineClient,
  type EngineStatus,
  FinishReason,
  type SessionEvent,
  VariantState,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { engineFiles, engineReady, loadedStatus } from '../support/engine-process.js'
import { eventually, isRunning } from '../support/gateway-process.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { testDevice } from '../support/test-device.js'
import { submitOf } from '../support/fake-engine.js'

const cleanups: (() => void)[] = []

afterEach(() => {
  for (const cleanup of cleanups.splice(0).toReversed()) cleanup()
})

/** Paths of one engine; its rungs are int4 of the embedded model, plus what `extra` adds to the configuration. */
function files(config: string): { socket: string; command: string[] } {
  const dir = mkdtempSync(join(tmpdir(), 'es-engine-'))
  cleanups.push(() => rmSync(dir, { recursive: true, force: true }))
  return engineFiles(dir, config)
}

interface Started {
  child: ChildProcess
  exited: Promise<number | null>
  log: string[]
}

function start(command: string[]): Started {
  const child = spawn(process.execPath, command, { stdio: ['pipe', 'ignore', 'pipe'] })
  cleanups.push(() => child.kill('SIGKILL'))
  const log: string[] = []
  if (child.stderr) createInterface({ input: child.stderr }).on('line', (line) => log.push(line))
  return { child, log, exited: new Promise((resolve) => child.once('exit', resolve)) }
}

function connect(socket: string): EngineClient {
  const client = openClient(socket)
  cleanups.push(() => client.close())
  return client
}

/** The engine's status as soon as no variant is loading any more. */
async function loaded(client: EngineClient, { exited, log }: Started): Promise<EngineStatus> {
  const ended = exited.then((code) => Promise.reject(new Error(`the process ended with ${code}: ${log.join(' ')}`)))
  ended.catch(() => {})
  await Promise.race([engineReady(client), ended])
  return loadedStatus(client)
}

/** Holds one rung of the embedded model, not with the KV cache of its whole context. */
const SMALL = testDevice({ cpu: 0.5, cuda: 0.6 })
const LARGE = testDevice({ cpu: 4, cuda: 4 })
const INT4 = `devices: [${LARGE.yaml}]
models: [{ id: m, variants: [{ precision: int4, path: ${JSON.stringify(SMOLLM2_FILE)} }], max_model_len: 512 }]`

/** One after the other of these fits. */
const LADDER = `devices: [${SMALL.yaml}]
models:
  - id: m
    max_model_len: 512
    variants:
      - { precision: fp16, path: ${JSON.stringify(SMOLLM2_FILE)} }
      - { precision: int8, from: fp16 }
      - { precision: int4, from: fp16 }
`

describe('engine process', { timeout: 60_000 }, () => {
  it('says of each variant whether it is ready, and why not with figures', async () => {
    const { socket, command } = files(`${LADDER}
  - id: large
    variants: [{ precision: fp16, path: ${JSON.stringify(SMOLLM2_FILE)} }]
  - id: broken
    variants: [{ precision: int4, path: ${JSON.stringify(import.meta.filename)} }]
`)
    const client = connect(socket)
    const status = await loaded(client, start(command))
    const assets: string[] = []
    for await (const { name } of client.getModelAssets({ model: 'm', configDigest: '' })) assets.push(name)
    expect(assets).toContain('chat_template.jinja')
    const states = Object.fromEntries(status.variants.map((variant) => [variant.name, variant]))
    expect(states['m:fp16']?.state).toBe(VariantState.READY)
    expect(states['m:int8']).toMatchObject({ state: VariantState.UNLOADED, loadable: true, error: '' })
    expect(states['large:fp16']).toMatchObject({ state: VariantState.UNLOADED, loadable: false, queueable: false })
    const [device] = status.devices
    const budget = device?.budgetBytes ?? 0
    // A GPU's context comes on top of it.
    expect(budget / 1e9).toBeGreaterThanOrEqual(SMALL.gigabytes)
    const free = `\\d+ MiB( and \\d+ MiB KV)? of ${Math.ceil(budget / 2 ** 20)} MiB free`
    expect(states['large:fp16']?.error).toMatch(new RegExp(`needs \\d+ MiB weights .* ${SMALL.id} has ${free}`))
    expect(states['broken:int4']).toMatchObject({ state: VariantState.FAILED })
    expect(states['broken:int4']?.error).not.toBe('')
    const taken = device?.ledger.reduce((sum, { bytes }) => sum + bytes, 0) ?? 0
    expect(taken).toBeLessThanOrEqual(budget)
    expect(device?.ledger.find(({ kind }) => kind === 'weights')?.bytes).toBe(states['m:fp16']?.weightBytes)
  })

  it('loads what operators have pinned first, and keeps it', async () => {
    const { socket, command } = files(LADDER)
    const pins = ['--pin', 'm:int8', '--pin', 'gone:int4', '--unpin', 'm:fp16']
    const status = await loaded(connect(socket), start([...command, ...pins]))
    const told = status.variants.map(({ name, state, pinned }) => [name, state === VariantState.READY, pinned])
    expect(told.slice(0, 2)).toEqual([
      ['m:fp16', false, false],
      ['m:int8', true, true],
    ])
  })

  it('whose own device is not in the file any more answers plainly that it has nothing to serve', async () => {
    const { socket, command } = files(INT4)
    const client = connect(socket)
    const status = await loaded(client, start([...command, '--device', 'gone']))
    expect(status.devices).toEqual([])
    const [variant, ...others] = status.variants
    expect(others).toEqual([])
    expect(variant).toMatchObject({ name: 'm:int4', state: VariantState.UNLOADED, loadable: false, queueable: false })
    expect(variant?.error).toBe('the device of this engine is not in the configuration any more')
    expect(variant?.neededBytes).toBeGreaterThan(0)
  })

  it('ends by itself when its parent closes the pipe, and leaves no socket', async () => {
    const { socket, command } = files(INT4)
    const engine = start(command)
    const { child, exited } = engine
    await loaded(connect(socket), engine)
    const closedAt = performance.now()
    child.stdin?.end()
    expect(await exited).toBe(0)
    expect(performance.now() - closedAt).toBeLessThan(2000)
    expect(existsSync(socket)).toBe(false)
  })

  it('ends by itself when its parent is killed', async () => {
    const { socket, command } = files(INT4)
    const script = `
      const { spawn } = require('node:child_process')
      const child = spawn(process.execPath, ${JSON.stringify(command)}, { stdio: ['ignore', 'ignore', 'ignore'], detached: true })
      process.stderr.write(child.pid + '\\n')
      setInterval(() => {}, 1000)`
    const parent = start(['-e', script])
    const { child, exited, log } = parent
    await loaded(connect(socket), parent)
    const pid = Number(log[0])
    expect(isRunning(pid)).toBe(true)
    child.kill('SIGKILL')
    await exited
    await eventually(() => !isRunning(pid) && !existsSync(socket), 'the engine ends')
  })

  it('on SIGTERM refuses new work, ends what runs and removes the socket', async () => {
    const { socket, command } = files(INT4)
    const engine = start(command)
    const { child, exited } = engine
    const client = connect(socket)
    await loaded(client, engine)
    const session = client.session()
    const send = (...commands: Command[]): void => void session.write({ commands })
    const submit = (id: number, maxTokens: number): Command => {
      return { kind: { $case: 'submit', submit: { ...submitOf(id, [1, 2, 3], { maxTokens }), variant: 'm:int4' } } }
    }
    const pause = (paused: boolean): Command => ({ kind: { $case: 'flow', flow: { sequenceId: 1, paused } } })
    const ends: (string | undefined)[] = []
    // The first stands still until the second was refused, however quick the device is.
    child.stderr?.on('data', (text: Buffer) => {
      if (text.includes('stopping')) send(submit(2, 8))
    })
    const received = new Promise<void>((resolve) => {
      session.on('error', () => resolve())
      session.on('end', () => resolve())
      session.on('data', ({ kind }: SessionEvent) => {
        if (kind?.$case !== 'step') return
        for (const delta of kind.step.deltas) {
          if (delta.sequenceId === 1 && delta.start) {
            send(pause(true))
            child.kill('SIGTERM')
          }
          if (delta.finishReason !== FinishReason.UNSPECIFIED) ends[delta.sequenceId] = delta.error?.code
          if (delta.sequenceId === 2) send(pause(false))
        }
      })
    })
    send(submit(1, 60))
    expect(await exited).toBe(0)
    await received
    expect(ends).toEqual([undefined, undefined, 'shutting_down'])
    expect(existsSync(socket)).toBe(false)
  })

  it('replaces the socket file of a dead engine and leaves a living one alone', async () => {
    const { socket, command } = files(INT4)
    const first = start(command)
    await loaded(connect(socket), first)
    const second = start(command)
    expect(await second.exited).toBe(1)
    expect(second.log.join('\n')).toContain('another process serves')
    first.child.kill('SIGKILL')
    await first.exited
    expect(existsSync(socket)).toBe(true)
    expect((await loaded(connect(socket), start(command))).variants[0]?.state).toBe(VariantState.READY)
  })
})
