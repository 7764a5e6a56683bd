/** A real gateway process, with a scripted engine or the real one. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const at = (path: string): string => fileURLToPath(new URL(path, import.meta.url))
const MODEL = at('../../models/smollm2-135m-instruct-q4_1.gguf')

/** Makes the shipped ladder one rung, which starts faster. */
export function onlyRung(precision: 'fp16' | 'int4'): (config: string) => string {
  return (config) =>
    config
      .replace('- precision: fp16', `- precision: ${precision}`)
      .replaceAll(/ {6}- precision: int.\n {8}from: fp16.*\n/g, '')
}

/** A line of the gateway's log. */
export type LogLine = Record<string, unknown>

/** True while a process with this id exists and is not a zombie of ours. */
export function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** Resolves when `condition` holds; looks again soon, fails after ten seconds. For what no event tells. */
export async function eventually(condition: () => boolean, what: string): Promise<void> {
  const until = performance.now() + 10_000
  while (!condition()) {
    if (performance.now() > until) throw new Error(`did not happen: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

/** Owns a folder and a process: `close` it. */
export class GatewayProcess {
  readonly log: LogLine[] = []
  readonly exited: Promise<{ code: number | null; signal: string | null }>
  stdout = ''
  private readonly waiters = new Set<() => void>()

  private constructor(
    private readonly dir: string,
    readonly child: ChildProcess,
  ) {
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        resolve({ code, signal })
        this.wake()
      })
    })
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text
      this.wake()
    })
    if (child.stderr === null) return
    createInterface({ input: child.stderr }).on('line', (line) => {
      const parsed: LogLine = line.startsWith('{') ? JSON.parse(line) : { msg: line }
      this.log.push(parsed)
      this.wake()
    })
  }

  /** Starts it on free ports with a scripted engine; `env` is the engine's. */
  static start(
    env: Record<string, string> = {},
    server = '{ http: "127.0.0.1:0", grpc: "127.0.0.1:0" }',
  ): GatewayProcess {
    const variants = `[{ precision: int4, path: ${JSON.stringify(MODEL)} }]`
    const config = `server: ${server}\nmodels: [{ id: m, tags: [chat], variants: ${variants} }]\n`
    return GatewayProcess.spawn(config, ['--engine', at('scripted-engine.ts')], env)
  }

  /**
   * Starts the shipped models.yaml on free ports with the real engine, or with a program of this folder; `edit` may change
   * the file's text.
   */
  static startShipped(
    edit: (config: string) => string = (config) => config,
    engine?: string,
    env: Record<string, string> = {},
  ): GatewayProcess {
    const shipped = readFileSync(at('../../models.yaml'), 'utf8')
      .replace('127.0.0.1:8080', '127.0.0.1:0')
      .replace('127.0.0.1:8081', '127.0.0.1:0')
      .replaceAll('models/smollm2-135m-instruct-q4_1.gguf', MODEL)
    return GatewayProcess.spawn(edit(shipped), engine === undefined ? [] : ['--engine', at(engine)], env)
  }

  /** Its TMPDIR is private, so that leftovers can be seen. */
  private static spawn(config: string, args: readonly string[], env: Record<string, string>): GatewayProcess {
    const dir = mkdtempSync(join(tmpdir(), 'es-fault-'))
    const file = join(dir, 'models.yaml')
    writeFileSync(file, config)
    const script = [at('../../gateway/cli/main.ts'), 'serve', '--config', file]
    const child = spawn(process.execPath, ['--import', 'tsx', ...script, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, TMPDIR: dir, ...env },
    })
    return new GatewayProcess(dir, child)
  }

  /** Its private temporary folder. */
  get tmp(): string {
    return this.dir
  }

  get pid(): number {
    return this.child.pid ?? 0
  }

  /** Ids of the engines it has started, in order. */
  get enginePids(): number[] {
    return this.log.filter(({ msg }) => msg === 'engine started').map(({ enginePid }) => Number(enginePid))
  }

  /** "http://127.0.0.1:PORT", from the banner. */
  get url(): string {
    return /http:\/\/\S+:\d+/.exec(this.stdout)?.[0] ?? ''
  }

  /** "127.0.0.1:PORT" of the public gRPC service, from the banner. */
  get grpcAddress(): string {
    return /gRPC\s+(\S+:\d+)/.exec(this.stdout)?.[1] ?? ''
  }

  /** Resolves when the banner is out. */
  async ready(): Promise<this> {
    await this.until(() => this.stdout.includes('curl '), 'the banner')
    return this
  }

  /** Resolves when `condition` holds; looked at after every line of output. Fails when the process ends before. */
  async until(condition: () => boolean, what: string): Promise<void> {
    while (!condition()) {
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        throw new Error(`the gateway ended before ${what}: ${JSON.stringify(this.log.slice(-5))}`)
      }
      await new Promise<void>((resolve) => this.waiters.add(resolve))
    }
  }

  /** A streamed chat of `maxTokens` tokens. */
  chat(maxTokens: number): Promise<Response> {
    const messages = [{ role: 'user', content: 'Hello' }]
    return fetch(`${this.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model: 'm', stream: true, max_tokens: maxTokens, messages }),
    })
  }

  /** Kills what is left and removes the folder. */
  async close(): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill('SIGKILL')
    await this.exited
    await eventually(() => !this.enginePids.some(isRunning), 'the engines end')
    rmSync(this.dir, { recursive: true, force: true })
  }

  private wake(): void {
    for (const resolve of this.waiters) resolve()
    this.waiters.clear()
  }
}
