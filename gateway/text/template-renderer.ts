import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { GatewayError } from '../errors.js'

/** Bounds of one renderer. */
export interface TemplateLimits {
  /** Longest that one render may take, milliseconds. */
  timeoutMs: number
  /** Longest result, UTF-16 units. */
  maxLength: number
  /** Renders that may wait. */
  maxWaiting: number
}

interface Job {
  /** Undefined: nothing to render, only to compile. */
  variables: Record<string, unknown> | undefined
  resolve: (text: string) => void
  reject: (error: GatewayError) => void
}

/** A process that compiled the template, or is about to. */
interface Renderer {
  process: ChildProcess
  /** Its first answer has come: the template compiles. */
  ready: boolean
}

type Answer = { text: string } | { error: string }

const PROGRAM = fileURLToPath(new URL('./template-process.mjs', import.meta.url))
const MEMORY = ['--max-old-space-size=96', '--max-semi-space-size=4']
const START_TIMEOUT_MS = 10_000

/**
 * Renders an untrusted chat template, one render at a time, in a process of its own. One that takes too long or too
 * much memory costs its own request only: the process is killed and the next render starts another. Close it.
 */
export class TemplateRenderer {
  readonly #source: string
  readonly #constants: Record<string, string>
  readonly #limits: TemplateLimits
  readonly #waiting: Job[] = []
  #renderer: Renderer | undefined
  #current: Job | undefined
  #timer: NodeJS.Timeout | undefined
  #closed = false

  constructor(source: string, constants: Record<string, string>, limits: TemplateLimits) {
    this.#source = source
    this.#constants = constants
    this.#limits = limits
  }

  /** Throws template_failed (what the template raised, or its limits), queue_full, shutting_down. */
  render(variables: Record<string, unknown>): Promise<string> {
    return this.#enqueue(variables)
  }

  /** Starts the process. Throws template_failed when the template does not compile. */
  async compile(): Promise<void> {
    await this.#enqueue(undefined)
  }

  /** Ends the process; renders under way and waiting fail with shutting_down. */
  async close(): Promise<void> {
    this.#closed = true
    const jobs = [this.#current, ...this.#waiting.splice(0)]
    this.#current = undefined
    for (const job of jobs) job?.reject(closing())
    const child = this.#stop()
    if (child !== undefined && child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  }

  #enqueue(variables: Job['variables']): Promise<string> {
    if (this.#closed) return Promise.reject(closing())
    if (this.#waiting.length >= this.#limits.maxWaiting) {
      const error = new GatewayError('queue_full', 'too many chats wait for the template', { retryAfterMs: 1000 })
      return Promise.reject(error)
    }
    return new Promise((resolve, reject) => {
      this.#waiting.push({ variables, resolve, reject })
      this.#next()
    })
  }

  #next(): void {
    if (this.#current !== undefined || this.#closed) return
    this.#current = this.#waiting.shift()
    if (this.#current === undefined) return
    if (this.#renderer === undefined) this.#start()
    else this.#send(this.#renderer)
  }

  #start(): void {
    const child = fork(PROGRAM, [], { env: {}, execArgv: MEMORY, stdio: ['pipe', 'ignore', 'ignore', 'ipc'] })
    const renderer = { process: child, ready: false }
    this.#renderer = renderer
    child.on('message', (answer: Answer) => this.#answered(renderer, answer))
    child.on('error', () => this.#failed(renderer, 'its process cannot be started'))
    child.on('exit', () => this.#failed(renderer, 'its process ended, by lack of memory or a fault'))
    child.stdin?.on('error', () => undefined)
    keepNothingAlive(child)
    const { maxLength } = this.#limits
    this.#arm(renderer, START_TIMEOUT_MS)
    this.#post(renderer, { source: this.#source, constants: this.#constants, maxLength })
  }

  #send(renderer: Renderer): void {
    const variables = this.#current?.variables
    if (variables === undefined) return this.#settle((job) => job.resolve(''))
    this.#arm(renderer, this.#limits.timeoutMs)
    this.#post(renderer, variables)
  }

  #post(renderer: Renderer, message: object): void {
    renderer.process.send(message, (error) => {
      if (error !== null) this.#failed(renderer, 'its process does not take messages')
    })
  }

  #arm(renderer: Renderer, limitMs: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#failed(renderer, `it took more than ${limitMs} ms`), limitMs)
  }

  #answered(renderer: Renderer, answer: Answer): void {
    if (renderer !== this.#renderer) return
    if ('error' in answer) {
      if (!renderer.ready) return this.#failed(renderer, answer.error)
      return this.#settle((job) => job.reject(templateFailed(answer.error)))
    }
    if (renderer.ready) return this.#settle((job) => job.resolve(answer.text))
    renderer.ready = true
    this.#send(renderer)
  }

  /** The process is of no use any more: the current render fails, the next one starts another process. */
  #failed(renderer: Renderer, reason: string): void {
    if (renderer !== this.#renderer) return
    this.#stop()
    this.#settle((job) => job.reject(templateFailed(reason)))
  }

  #settle(end: (job: Job) => void): void {
    clearTimeout(this.#timer)
    const job = this.#current
    this.#current = undefined
    if (job !== undefined) end(job)
    this.#next()
  }

  #stop(): ChildProcess | undefined {
    clearTimeout(this.#timer)
    const child = this.#renderer?.process
    this.#renderer = undefined
    child?.kill('SIGKILL')
    return child
  }
}

/** The renderer alone is no reason for the gateway to go on. */
function keepNothingAlive(child: ChildProcess): void {
  child.unref()
  child.channel?.unref()
  if (child.stdin !== null && 'unref' in child.stdin && typeof child.stdin.unref === 'function') child.stdin.unref()
}

function templateFailed(reason: string): GatewayError {
  return new GatewayError('template_failed', `the chat template failed: ${reason}`, { param: 'messages' })
}

function closing(): GatewayError {
  return new GatewayError('shutting_down', 'the gateway is stopping')
}
