import { status as grpcStatus, type ServerDuplexStream } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import {
  type Command,
  type EngineStatus,
  FinishReason,
  type SequenceDelta,
  type SessionEvent,
  type SessionRequest,
  type Submit,
} from '../../proto/gen/edgeshift/v1/engine.js'
import type { Engine } from '../engine.js'
import type { Sequence, SequenceOwner } from '../scheduler/sequence.js'

type SessionCall = ServerDuplexStream<SessionRequest, SessionEvent>

/** Undelivered deltas above which a session's requests are not read any more, until its reader catches up. */
const MAX_PENDING_DELTAS = 1024

/** One gateway's multiplexed stream. It owns the sequences it submitted and cancels them when it ends. */
export class Session implements SequenceOwner {
  blockedSince: number | undefined
  private readonly sequences = new Map<number, Sequence>()
  private pending: SequenceDelta[] = []
  private flushScheduled = false
  private closed = false

  constructor(
    private readonly call: SessionCall,
    private readonly engine: Engine,
    private readonly log: Logger,
    private readonly onClose: () => void,
  ) {
    call.on('data', ({ commands }: SessionRequest) => commands.forEach((command) => this.receive(command)))
    call.on('end', () => this.close())
    call.on('cancelled', () => this.close())
    call.on('error', () => this.close())
    call.on('close', () => this.close())
  }

  /** Collects what one step produced into one message. */
  deliver(delta: SequenceDelta): void {
    if (this.closed) return
    if (delta.finishReason !== FinishReason.UNSPECIFIED) this.sequences.delete(delta.sequenceId)
    this.pending.push(delta)
    if (this.blockedSince !== undefined && this.pending.length > MAX_PENDING_DELTAS) this.call.pause()
    if (this.flushScheduled) return
    this.flushScheduled = true
    // After the loop has issued the next step: writing must not make the device wait.
    setImmediate(() => {
      this.flushScheduled = false
      this.flush()
    })
  }

  /** Skipped while the reader is slow: the next one says all. */
  sendStatus(status: EngineStatus): void {
    if (this.blockedSince === undefined) this.write({ kind: { $case: 'status', status } })
  }

  /** Cancels what is left of the session and ends the stream. */
  close(): void {
    if (this.closed) return
    this.closed = true
    for (const sequence of this.sequences.values()) this.engine.cancel(sequence)
    this.sequences.clear()
    this.pending = []
    this.call.end()
    this.onClose()
  }

  /** Writes what is pending now. */
  flush(): void {
    if (this.closed || this.blockedSince !== undefined || this.pending.length === 0) return
    const deltas = this.pending
    this.pending = []
    this.write({ kind: { $case: 'step', step: { deltas } } })
  }

  private write(event: SessionEvent): void {
    if (this.closed || this.call.write(event)) return
    this.blockedSince = this.engine.options.clock()
    this.call.once('drain', () => this.unblock())
  }

  private unblock(): void {
    this.blockedSince = undefined
    this.flush()
    if (this.blockedSince !== undefined) return
    this.call.resume()
    this.engine.wake()
  }

  private receive({ kind }: Command): void {
    if (this.closed) return
    if (kind?.$case === 'submit') this.submit(kind.submit)
    else if (kind?.$case === 'cancel') this.withSequence(kind.cancel.sequenceId, (s) => this.engine.cancel(s))
    else if (kind?.$case === 'flow') {
      const { sequenceId, paused } = kind.flow
      this.withSequence(sequenceId, (s) => this.engine.setPaused(s, paused))
    }
  }

  private submit(submit: Submit): void {
    if (this.sequences.has(submit.sequenceId)) {
      this.abort(`sequence_id ${submit.sequenceId} is in use`)
      return
    }
    const { sequenceId, variant, traceparent } = submit
    this.log.debug({ sequenceId, variant, traceparent, prompt: submit.prompt.length }, 'submit')
    const sequence = this.engine.submit(submit, this)
    if (sequence) this.sequences.set(sequenceId, sequence)
  }

  /** Messages for sequences that have ended cross their end on the way: they are ignored. */
  private withSequence(id: number, action: (sequence: Sequence) => void): void {
    const sequence = this.sequences.get(id)
    if (sequence) action(sequence)
  }

  private abort(details: string): void {
    this.call.emit('error', { code: grpcStatus.INVALID_ARGUMENT, details })
    this.close()
  }
}
