/** A model file that is truncated before or while an engine reads it: one rung fails with the reason, the engine serves on. */
import { type ChildProcess, spawn } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { credentials } from '@grpc/grpc-js'
import { afterEach, describe, expect, it } from 'vitest'
import {
  EngineClient,
  FinishReason,
  type SessionEvent,
  type VariantStatus,
  VariantState,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { submitOf } from '../support/fake-engine.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'

const MAIN = new URL('../../engine/main.ts', import.meta.url).pathname
const ATTEMPTS = 5
const cleanups: (() => void)[] = []

afterEach(() => {
  for (const cleanup of cleanups.splice(0).toReversed()) cleanup()
})

interface Engine {
  child: ChildProcess
  client: EngineClient
  model: string
}

/** An engine with the embedded model at int4 (`whole`) and a copy of its file at fp16 (`torn`). */
function start(prepare: (model: string) => void): Engine {
  const folder = mkdtempSync(join(tmpdir(), 'es-torn-'))
  cleanups.push(() => rmSync(folder, { recursive: true, force: true }))
  const model = join(folder, 'model.gguf')
  copyFileSync(SMOLLM2_FILE, model)
  prepare(model)
  const config = join(folder, 'models.yaml')
  const rung = (id: string, path: string, precision: string): string =>
    `  - { id: ${id}, max_model_len: 256, variants: [{ precision: ${precision}, path: ${JSON.stringify(path)} }] }\n`
  writeFileSync(config, `models:\n${rung('whole', SMOLLM2_FILE, 'int4')}${rung('torn', model, 'fp16')}`)
  const socket = join(folder, 'engine.sock')
  const child = spawn(process.execPath, ['--import', 'tsx', MAIN, '--config', config, '--socket', socket], {
    stdio: ['pipe', 'ignore', 'inherit'],
  })
  cleanups.push(() => child.kill('SIGKILL'))
  const client = new EngineClient(`unix:${socket}`, credentials.createInsecure())
  cleanups.push(() => client.close())
  return { child, client, model }
}

/** Both variants as soon as neither is loading any more. */
async function settled({ client }: Engine): Promise<Record<string, VariantStatus>> {
  await new Promise<void>((resolve, reject) => {
    client.waitForReady(Date.now() + 40_000, (error) => (error ? reject(error) : resolve()))
  })
  return new Promise((resolve, reject) => {
    const session = client.session()
    session.on('error', reject)
    session.on('data', ({ kind }: SessionEvent) => {
      if (kind?.$case !== 'status') return
      const { variants } = kind.status
      if (variants.length === 0 || variants.some(({ state }) => state === VariantState.LOADING)) return
      session.removeAllListeners('error').on('error', () => {})
      session.cancel()
      resolve(Object.fromEntries(variants.map((variant) => [variant.model, variant])))
    })
  })
}

/** The finish reason of three tokens of the whole model. */
async function answer({ client }: Engine): Promise<FinishReason> {
  const session = client.session()
  const submit = { ...submitOf(1, [1, 2, 3], { maxTokens: 3 }), variant: 'whole:int4' }
  session.write({ commands: [{ kind: { $case: 'submit', submit } }] })
  const ended = new Promise<FinishReason>((resolve, reject) => {
    session.on('error', reject)
    session.on('data', ({ kind }: SessionEvent) => {
      if (kind?.$case !== 'step') return
      for (const { finishReason } of kind.step.deltas)
        if (finishReason !== FinishReason.UNSPECIFIED) resolve(finishReason)
    })
  })
  const reason = await ended
  session.removeAllListeners('error').on('error', () => {})
  session.cancel()
  return reason
}

async function untilMapped({ child, model }: Engine): Promise<void> {
  const maps = `/proc/${child.pid}/maps`
  while (child.exitCode === null && !readFileSync(maps, 'utf8').includes(model)) {
    // oxlint-disable-next-line no-await-in-loop -- until the other process has come so far
    await setImmediate()
  }
}

describe('a torn model file', { timeout: 120_000 }, () => {
  it('is refused with its name when it was truncated before the load', async () => {
    const engine = start((model) => truncateSync(model, 40_000_000))
    const { torn, whole } = await settled(engine)
    expect(torn).toMatchObject({ state: VariantState.FAILED })
    expect(torn?.error).toMatch(/model\.gguf.*past the end of the file/)
    expect(whole).toMatchObject({ state: VariantState.READY })
  })

  it.skipIf(!existsSync('/proc/self/maps'))('fails its rung when it is truncated during the load', async () => {
    // Tried again where what was seen was the end of the load, or the reading of the header before it.
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const engine = start(() => {})
      // oxlint-disable-next-line no-await-in-loop -- one engine at a time
      await untilMapped(engine)
      truncateSync(engine.model, 1_000_000)
      // oxlint-disable-next-line no-await-in-loop
      const { torn, whole } = await settled(engine)
      expect(whole).toMatchObject({ state: VariantState.READY })
      // oxlint-disable-next-line no-await-in-loop
      expect(await answer(engine)).toBe(FinishReason.LENGTH)
      expect(engine.child.exitCode).toBeNull()
      if (torn?.state === VariantState.READY || torn?.error.includes('past the end of the file')) continue
      expect(torn).toMatchObject({ state: VariantState.FAILED })
      expect(torn?.error).toContain('model.gguf: the file was truncated, or could not be read, while it was being read')
      return
    }
    expect.unreachable(`no load was seen in ${ATTEMPTS} attempts`)
  })
})
