/** The processes that gateway benchmarks measure: each with its port, each to be closed. */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Absolute path of a file of this repository. */
export const at = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url))

/** A started process. */
export interface Running {
  child: ChildProcess
  /** What it printed until it was ready. */
  output: string
  close(): Promise<void>
}

/** Starts node with `args`; resolves when its standard output holds `mark`. Its log is thrown away. */
export async function startNode(args: string[], mark: string, env: Record<string, string> = {}): Promise<Running> {
  const child = spawn(process.execPath, args, {
    stdio: ['pipe', 'pipe', process.env.VERBOSE ? 'inherit' : 'ignore'],
    env: { ...process.env, ...env },
  })
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  let output = ''
  await new Promise<void>((resolve, reject) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text
      if (output.includes(mark)) resolve()
    })
    void exited.then(() => reject(new Error(`${args.join(' ')} ended before it was ready`)))
  })
  const close = async (): Promise<void> => {
    child.kill('SIGTERM')
    await exited
  }
  return { child, output, close }
}

/** The gateway as built (or from sources where nothing is built) before a scripted engine; STEP_MS is its pace. */
export async function startGateway(stepMs: number): Promise<Running & { http: number; grpc: number }> {
  const dir = mkdtempSync(join(tmpdir(), 'es-bench-'))
  const config = join(dir, 'models.yaml')
  writeFileSync(
    config,
    'server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0" }\n' +
      'models: [{ id: m, tags: [chat], variants: [{ precision: int4, path: none.gguf }] }]\n',
  )
  const program = existsSync(at('dist/cli.js')) ? [at('dist/cli.js')] : ['--import', 'tsx', at('gateway/cli/main.ts')]
  const args = ['serve', '--config', config, '--engine', at('test/support/scripted-engine.ts')]
  const running = await startNode([...(process.env.NODE_ARGS?.split(' ') ?? []), ...program, ...args], 'curl ', {
    STEP_MS: String(stepMs),
  })
  const close = async (): Promise<void> => {
    await running.close()
    rmSync(dir, { recursive: true })
  }
  const port = (pattern: RegExp): number => Number(pattern.exec(running.output)?.[1])
  return { ...running, close, http: port(/http:\/\/\S+:(\d+)/), grpc: port(/gRPC\s+\S+:(\d+)/) }
}
