import type { ClientDuplexStream } from '@grpc/grpc-js'
import {
  type Command,
  FinishReason,
  type EngineStatus,
  type SequenceDelta,
  type SessionEvent,
  type SessionRequest,
  type Submit,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { GatewayError } from '../errors.js'
import { CommandQueue, fitsMessage } from './command-queue.js'

/** Hears of one sequence. Called synchronously, in order; must not throw. */
export interface SequenceListener {
  /** News of one engine step. After a delta with a finish reason nothing follows. */
  onDelta(delta: SequenceDelta): void
  /** The session broke while the sequence ran. Nothing follows. */
  onLost(error: GatewayError): void
}

/** Hears of the session as a whole. */
export interface SessionListener {
  onStatus(status: EngineStatus): void
  /** One engine step with the number of sequences that advanced. */
  onStep(batchSize: number): void
  /** The stream ended; every sequence was told before. Called once. */
  onEnd(reason: string): void
}

/** Everything of a Submit but its id, which the session assigns. */
export type Submission = Omit<Submit, 'sequenceId'>

/**
 * The multiplexed stream to one engine: submits, cancels and flow up, step events down.
 * Owns the sequences' listeners from submit to their last event; owns the stream.
 */
export class EngineSession {
  readonly #stream: ClientDuplexStream<SessionRequest, SessionEvent>
  readonly #listener: SessionListener
  readonly #sequences = new Map<number, SequenceListener>()
  /** What is to be said, in order: all of one turn of the event loop, or more while the stream is full. */
  readonly #outbox = new CommandQueue()
  /** A flush is coming: at the end of this turn, or when the stream has drained. */
  #flushing = false
  #nextId = 1
  #ended = false

  constructor(stream: ClientDuplexStream<SessionRequest, SessionEvent>, listener: SessionListener) {
    this.#stream = stream
    this.#listener = listener
    stream.on('data', (event: SessionEvent) => this.#onEvent(event))
    stream.on('drain', () => this.#flush())
    stream.on('error', (error: Error) => this.#end(error.message))
    stream.on('end', () => this.#end('the engine closed the session'))
  }

  get open(): boolean {
    return !this.#ended
  }

  /** Sequences in flight. */
  get size(): number {
    return this.#sequences.size
  }

  /**
   * Sends a sequence and returns its id. Throws engine_failed when closed, queue_full when the stream is stuck,
   * context_length_exceeded when no message has room for its tokens.
   */
  submit(submission: Submission, listener: SequenceListener): number {
    if (this.#ended) throw new GatewayError('engine_failed', 'the engine went away', { retryAfterMs: 1000 })
    if (this.#outbox.full) {
      throw new GatewayError('queue_full', 'the engine does not take requests fast enough', { retryAfterMs: 1000 })
    }
    const sequenceId = this.#nextId++
    const command: Command = { kind: { $case: 'submit', submit: { ...submission, sequenceId } } }
    if (!fitsMessage(command)) throw tooLong(submission)
    this.#sequences.set(sequenceId, listener)
    this.#send(command)
    return sequenceId
  }

  /** Stops a sequence; its listener hears nothing more. No effect when it has ended. */
  cancel(sequenceId: number): void {
    if (!this.#sequences.delete(sequenceId) || this.#ended) return
    this.#send({ kind: { $case: 'cancel', cancel: { sequenceId } } })
  }

  /** Stops or resumes the scheduling of a sequence. No effect when it has ended. */
  setPaused(sequenceId: number, paused: boolean): void {
    if (!this.#sequences.has(sequenceId) || this.#ended) return
    this.#send({ kind: { $case: 'flow', flow: { sequenceId, paused } } })
  }

  /** Ends the stream; sequences in flight are lost with `reason`. */
  close(reason: string): void {
    if (this.#ended) return
    this.#end(reason)
    this.#stream.cancel()
  }

  #send(command: Command): void {
    this.#outbox.push(command)
    if (this.#flushing) return
    this.#flushing = true
    setImmediate(() => this.#flush())
  }

  #flush(): void {
    this.#flushing = false
    // When the stream is full its drain event flushes the rest.
    while (!this.#outbox.empty && !this.#flushing)
      this.#flushing = !this.#stream.write({ commands: this.#outbox.take() })
  }

  #onEvent(event: SessionEvent): void {
    if (this.#ended) return
    if (event.kind?.$case === 'step') this.#onDeltas(event.kind.step.deltas)
    else if (event.kind?.$case === 'status') this.#listener.onStatus(event.kind.status)
  }

  #onDeltas(deltas: SequenceDelta[]): void {
    this.#listener.onStep(deltas.length)
    for (const delta of deltas) {
      const listener = this.#sequences.get(delta.sequenceId)
      // Unknown ids are sequences that were cancelled while this step was on its way.
      if (listener === undefined) continue
      if (delta.finishReason !== FinishReason.UNSPECIFIED) this.#sequences.delete(delta.sequenceId)
      listener.onDelta(delta)
    }
  }

  #end(reason: string): void {
    if (this.#ended) return
    this.#ended = true
    const lost = [...this.#sequences.values()]
    this.#sequences.clear()
    this.#outbox.clear()
    for (const listener of lost) {
      listener.onLost(new GatewayError('engine_failed', `the engine failed: ${reason}`, { retryAfterMs: 1000 }))
    }
    this.#listener.onEnd(reason)
  }
}

/** A message above the engine's limit would end the session, and every other sequence with it. */
function tooLong({ prompt }: Submission): GatewayError {
  const message = `${prompt.length} tokens of prompt and answer are more than an engine can be sent`
  return new GatewayError('context_length_exceeded', message, { param: 'prompt' })
}
