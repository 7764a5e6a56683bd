import { Worker } from 'node:worker_threads'
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

/** A thread that compiled the template, or is about to. */
interface Thread {
  worker: Worker
  /** Its first message has come: the template compiles. */
  ready: boolean
}

type Answer = { text: string } | { error: string }

const MEMORY = { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 16, stackSizeMb: 2 }
const START_TIMEOUT_MS = 10_000

/**
 * Renders an untrusted chat template, one render at a time, in a worker thread. One that takes too long or too much
 * memory costs its own request only: the thread is stopped and the next render starts another. Close it.
 */
export class TemplateRenderer {
  readonly #source: string
  readonly #constants: Record<string, string>
  readonly #limits: TemplateLimits
  readonly #waiting: Job[] = []
  #thread: Thread | undefined
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

  /** Starts the thread. Throws template_failed when the template does not compile. */
  async compile(): Promise<void> {
    await this.#enqueue(undefined)
  }

  #enqueue(variables: Job['variables']): Promise<string> {
    if (this.#closed) return Promise.reject(closing())
    if (this.#waiting.length >= this.#limits.maxWaiting) {
      return Promise.reject(
        new GatewayError('queue_full', 'too many chats wait for the template', { retryAfterMs: 1000 }),
      )
    }
    return new Promise((resolve, reject) => {
      this.#waiting.push({ variables, resolve, reject })
      this.#next()
    })
  }

  /** Stops the thread; renders under way and waiting fail with shutting_down. */
  async close(): Promise<void> {
    this.#closed = true
    const jobs = [this.#current, ...this.#waiting.splice(0)]
    this.#current = undefined
    for (const job of jobs) job?.reject(closing())
    await this.#stopThread()
  }

  #next(): void {
    if (this.#current !== undefined || this.#closed) return
    const job = this.#waiting.shift()
    if (job === undefined) return
    this.#current = job
    if (this.#thread === undefined) this.#start()
    else this.#send(this.#thread)
  }

  #start(): void {
    const { maxLength } = this.#limits
    const worker = new Worker(new URL('./template-worker.mjs', import.meta.url), {
      workerData: { source: this.#source, constants: this.#constants, maxLength },
      env: {},
      execArgv: [],
      resourceLimits: MEMORY,
    })
    const thread = { worker, ready: false }
    this.#thread = thread
    worker.unref()
    worker.on('message', (answer: Answer) => this.#answered(thread, answer))
    worker.on('error', (error) => this.#failed(thread, failure(error)))
    worker.on('exit', () => this.#failed(thread, 'its thread ended'))
    this.#arm(thread, START_TIMEOUT_MS)
  }

  #send(thread: Thread): void {
    const variables = this.#current?.variables
    if (variables === undefined) return this.#settle((job) => job.resolve(''))
    this.#arm(thread, this.#limits.timeoutMs)
    // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread, not a window
    thread.worker.postMessage(variables)
  }

  #arm(thread: Thread, limitMs: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#failed(thread, `it took more than ${limitMs} ms`), limitMs)
  }

  #answered(thread: Thread, answer: Answer): void {
    if (thread !== this.#thread) return
    if ('error' in answer) {
      if (!thread.ready) return this.#failed(thread, answer.error)
      return this.#settle((job) => job.reject(templateFailed(answer.error)))
    }
    if (thread.ready) return this.#settle((job) => job.resolve(answer.text))
    thread.ready = true
    this.#send(thread)
  }

  /** The thread is of no use any more: the current render fails, the next one starts another thread. */
  #failed(thread: Thread, reason: string): void {
    if (thread !== this.#thread) return
    this.#stopThread().catch(() => undefined)
    this.#settle((job) => job.reject(templateFailed(reason)))
  }

  #settle(end: (job: Job) => void): void {
    clearTimeout(this.#timer)
    const job = this.#current
    this.#current = undefined
    if (job !== undefined) end(job)
    this.#next()
  }

  async #stopThread(): Promise<void> {
    clearTimeout(this.#timer)
    const thread = this.#thread
    this.#thread = undefined
    await thread?.worker.terminate()
  }
}

function failure(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  return code === 'ERR_WORKER_OUT_OF_MEMORY' ? 'it took too much memory' : 'its thread failed'
}

function templateFailed(reason: string): GatewayError {
  return new GatewayError('template_failed', `the chat template failed: ${reason}`, { param: 'messages' })
}

function closing(): GatewayError {
  return new GatewayError('shutting_down', 'the gateway is stopping')
}
