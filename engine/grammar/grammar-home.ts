import { Worker } from 'node:worker_threads'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { GrammarError } from './grammar-error.js'
import type { HomeReply, HomeRequest } from './grammar-worker.js'
import type { MaskAnswer, MaskRequest } from './keeper.js'
import type { GrammarVocabulary } from './vocabulary.js'

interface Call {
  resolve(reply: HomeReply): void
  reject(error: GrammarError): void
  timer: NodeJS.Timeout
}

const FROM_SOURCES = import.meta.url.endsWith('.ts')
const PROGRAM = FROM_SOURCES ? './worker-from-sources.mjs' : './grammar-worker.js'
/** Of the thread; what it keeps outside of the heap is bounded by itself. */
const HEAP_MB = 512
/** Longest that a thread may take to start and to read the vocabulary, and to compile, milliseconds. */
const COMPILE_MS = 20_000
/** Longest that the masks of one step may take, milliseconds. */
const MASKS_MS = 5_000

/**
 * A thread that keeps one grammar at a time: compiles it, knows where each of its sequences stands in it, and says which
 * tokens may come next. A grammar that is refused costs its callers only; what takes too long, or memory, ends the thread, and
 * whoever waits for it is told. Close it.
 */
export class GrammarHome {
  /** What its thread held when it last answered. */
  bytes = 0
  private fault: GrammarError | undefined
  private readonly worker: Worker
  private readonly calls = new Map<number, Call>()
  private lastId = 0

  constructor(
    readonly vocabulary: GrammarVocabulary,
    private readonly limits = { compileMs: COMPILE_MS, masksMs: MASKS_MS },
  ) {
    this.worker = new Worker(new URL(PROGRAM, import.meta.url), {
      workerData: vocabulary,
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MB },
    })
    this.worker.unref()
    this.worker.on('message', (reply: HomeReply) => this.answered(reply))
    this.worker.on('error', (error) => this.fail(new GrammarError(`the grammar failed: ${error.message}`)))
    this.worker.on('exit', () => this.fail(new GrammarError('the grammar failed: its thread ended')))
  }

  /** The thread is of no use any more. */
  get dead(): boolean {
    return this.fault !== undefined
  }

  /** Takes the place of the grammar before, which must have no sequences. Rejects with GrammarError; there is none then. */
  async compile(grammar: Grammar): Promise<void> {
    await this.call((id) => ({ type: 'compile', id, grammar }), this.limits.compileMs)
  }

  /** A mask for each; sequences that it has not seen begin with all of their output. Rejects as compile. */
  async masks(requests: readonly MaskRequest[]): Promise<MaskAnswer> {
    const { masks } = await this.call((id) => ({ type: 'masks', id, requests }), this.limits.masksMs)
    if (!masks) throw new GrammarError('there is no grammar')
    return masks
  }

  /** The sequence has ended. */
  forget(sequence: number): void {
    if (!this.dead) this.post({ type: 'forget', sequence })
  }

  /** Ends the thread; calls under way reject. */
  close(): void {
    this.fail(new GrammarError('the engine is stopping'))
  }

  private post(request: HomeRequest): void {
    // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread, not a window
    this.worker.postMessage(request)
  }

  private call(request: (id: number) => HomeRequest, limitMs: number): Promise<HomeReply> {
    if (this.fault) return Promise.reject(this.fault)
    const id = ++this.lastId
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.fail(new GrammarError(`the grammar took more than ${limitMs} ms`)), limitMs)
      this.calls.set(id, { resolve, reject, timer })
      this.post(request(id))
    })
  }

  private answered(reply: HomeReply): void {
    const { id, error } = reply
    this.bytes = reply.bytes
    const call = this.calls.get(id)
    if (!call) return
    this.calls.delete(id)
    clearTimeout(call.timer)
    if (error === undefined) call.resolve(reply)
    else call.reject(new GrammarError(error))
  }

  private fail(fault: GrammarError): void {
    if (this.fault) return
    this.fault = fault
    for (const call of this.calls.values()) {
      clearTimeout(call.timer)
      call.reject(fault)
    }
    this.calls.clear()
    void this.worker.terminate()
  }
}
