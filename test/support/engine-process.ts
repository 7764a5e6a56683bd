/** The engine as a process of its own, without a gateway. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { openClient } from '../../gateway/engine-client/connect.js'
import {
  type EngineClient,
  type EngineStatus,
  FinishReason,
  type SessionEvent,
  VariantState,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { submitOf } from './fake-engine.js'

const MAIN = new URL('../../engine/main.ts', import.meta.url).pathname
const START_MS = 40_000

/** How a sequence ended, with its tokens. */
export interface EngineAnswer {
  tokens: number[]
  finishReason: FinishReason
}

/** Writes an engine's configuration into the folder. Its socket, and the arguments of node that start it. */
export function engineFiles(folder: string, config: string): { socket: string; command: string[] } {
  const file = join(folder, 'models.yaml')
  writeFileSync(file, config)
  const socket = join(folder, 'engine.sock')
  return { socket, command: ['--import', 'tsx', MAIN, '--config', file, '--socket', socket] }
}

/** Until an engine that was just started answers. */
export function engineReady(client: EngineClient): Promise<void> {
  return new Promise((resolve, reject) => {
    client.waitForReady(Date.now() + START_MS, (error) => (error ? reject(error) : resolve()))
  })
}

/** An engine's status as soon as no variant is being loaded any more. */
export function loadedStatus(client: EngineClient): Promise<EngineStatus> {
  return new Promise((resolve, reject) => {
    const session = client.session()
    session.on('error', reject)
    session.on('data', ({ kind }: SessionEvent) => {
      if (kind?.$case !== 'status') return
      const { variants } = kind.status
      if (variants.length === 0 || variants.some(({ state }) => state === VariantState.LOADING)) return
      session.removeAllListeners('error').on('error', () => {})
      session.cancel()
      resolve(kind.status)
    })
  })
}

/** Owns a folder and a process: `close` it. */
export class EngineProcess {
  /** Lines of its log. */
  readonly log: Record<string, unknown>[] = []
  private readonly waiters = new Set<() => void>()
  private ids = 0

  private constructor(
    readonly folder: string,
    readonly child: ChildProcess,
    private readonly client: EngineClient,
  ) {
    child.once('exit', () => this.wake())
    if (child.stderr === null) return
    createInterface({ input: child.stderr }).on('line', (line) => {
      this.log.push(line.startsWith('{') ? JSON.parse(line) : { msg: line })
      this.wake()
    })
  }

  /**
   * Starts it in a folder of its own, with the configuration that `config` makes of the folder's path. `through` is a
   * command that ends in running its further arguments.
   */
  static start(config: (folder: string) => string, through: (folder: string) => string[] = () => []): EngineProcess {
    const folder = mkdtempSync(join(tmpdir(), 'es-engine-'))
    const { socket, command } = engineFiles(folder, config(folder))
    const [program = process.execPath, ...args] = [...through(folder), process.execPath, ...command]
    const child = spawn(program, args, { stdio: ['pipe', 'ignore', 'pipe'] })
    return new EngineProcess(folder, child, openClient(socket))
  }

  /** Its status as soon as no variant is being loaded any more. */
  async settled(): Promise<EngineStatus> {
    await engineReady(this.client)
    return loadedStatus(this.client)
  }

  /** Its status now. */
  status(): Promise<EngineStatus> {
    return new Promise((resolve, reject) => {
      this.client.describe({}, (error, answer) => {
        if (error) reject(error)
        else if (answer.status) resolve(answer.status)
        else reject(new Error('no status'))
      })
    })
  }

  /** Asks a variant; loads it if need be. */
  ask(variant: string, prompt: number[], maxTokens: number): Promise<EngineAnswer> {
    const session = this.client.session()
    const submit = { ...submitOf(++this.ids, prompt, { maxTokens }), variant }
    session.write({ commands: [{ kind: { $case: 'submit', submit } }] })
    return new Promise((resolve, reject) => {
      const tokens: number[] = []
      session.on('error', reject)
      session.on('data', ({ kind }: SessionEvent) => {
        if (kind?.$case !== 'step') return
        for (const delta of kind.step.deltas) {
          tokens.push(...delta.tokens)
          if (delta.finishReason === FinishReason.UNSPECIFIED) continue
          session.removeAllListeners('error').on('error', () => {})
          session.cancel()
          resolve({ tokens, finishReason: delta.finishReason })
        }
      })
    })
  }

  /** Unloads an idle variant. */
  unload(variant: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.client.unload({ variant }, (error) => (error ? reject(error) : resolve()))
    })
  }

  /** Resolves with the first line of the log with this message, past or to come. Fails when the process ends before. */
  async logged(message: string): Promise<Record<string, unknown>> {
    for (;;) {
      const line = this.log.find(({ msg }) => msg === message)
      if (line) return line
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        throw new Error(`the engine ended before "${message}": ${JSON.stringify(this.log.slice(-5))}`)
      }
      // oxlint-disable-next-line no-await-in-loop -- until the next line
      await new Promise<void>((resolve) => this.waiters.add(resolve))
    }
  }

  /** Kills what is left and removes the folder. */
  close(): void {
    this.child.kill('SIGKILL')
    this.client.close()
    rmSync(this.folder, { recursive: true, force: true })
  }

  private wake(): void {
    for (const resolve of this.waiters) resolve()
    this.waiters.clear()
  }
}
