/** A stream that outlives its connection: what it said, who reads it, how far. */
import { GatewayError } from '../errors.js'
import type { GenerateEvent, GenerateHandle, GenerateSink } from '../request.js'
import { EventWindow } from './window.js'

/** How the stream was asked for, which another protocol cannot know. */
export interface StreamShape {
  kind: 'chat' | 'completion'
  choices: number
  includeUsage: boolean
  includeTokenIds: boolean
}

/** Receives events with their numbers; 0 = the stream cannot be resumed. */
export type ReaderSink = (event: GenerateEvent, number: number) => void

/** A request as its connection holds it. */
export interface ReaderHandle extends GenerateHandle {
  /** The connection is gone. Cancels the request, unless it can be resumed: then it waits for its next reader. */
  leave(): void
}

/** What a record tells its owner. */
export interface RecordOwner {
  /** Bytes that one stream may hold. */
  readonly maxBytes: number
  /** Something was kept: `bytes` more than before. */
  onGrown(record: StreamRecord, bytes: number): void
  /** Nobody reads it any more, or it has ended. */
  onIdle(record: StreamRecord): void
  /** Somebody reads it again. */
  onBusy(record: StreamRecord): void
}

/** Events given to a reader in one turn of the event loop while it catches up; its queue is looked at in between. */
const SLICE = 32

/** Owns a request and at most one reader. */
export class StreamRecord {
  readonly window = new EventWindow()
  /** Unix seconds. */
  readonly created = Math.floor(Date.now() / 1000)
  ended = false
  #request: GenerateHandle | undefined
  #reader: Reader | undefined
  #requestPaused = false
  /** Newest event that a reader was given. */
  #given = 0

  constructor(
    readonly id: string,
    readonly tenant: string,
    readonly shape: StreamShape,
    private readonly owner: RecordOwner,
  ) {}

  get attached(): boolean {
    return this.#reader !== undefined
  }

  /** Starts the request and gives its first reader. */
  start(generate: (sink: GenerateSink) => GenerateHandle, sink: ReaderSink): ReaderHandle {
    const reader = new Reader(this, sink, 0)
    this.#reader = reader
    this.#request = generate((event) => this.#take(event))
    this.#balance()
    return reader
  }

  /**
   * Gives a new reader everything that is kept, as it was: from `started` on, so that it can rebuild what it knows, and
   * to be shown from the event after number `after`. A reader there was ends with `cancelled`. Nothing is delivered
   * before this returns. Throws when events after `after` were dropped or `after` has not happened.
   */
  attach(sink: ReaderSink, after: number): ReaderHandle {
    if (after > this.window.last) {
      throw new GatewayError('invalid_request', `the stream has had ${this.window.last} events, not ${after}`)
    }
    if (after < this.window.dropped) {
      const first = this.window.dropped
      throw new GatewayError('stream_not_found', `the stream's events before ${first + 1} are no longer kept`)
    }
    this.#reader?.replace()
    const reader = new Reader(this, sink, 0)
    this.#reader = reader
    // Until the reader has passed them again, no events are dropped.
    this.#given = 0
    this.owner.onBusy(this)
    this.#balance()
    reader.catchUp()
    return reader
  }

  /** Ends the request; its last event is kept like any other. */
  cancel(): void {
    this.#request?.cancel()
  }

  /** Keeps only what the reader has not been given. */
  forget(): void {
    const before = this.window.bytes
    this.window.trim(0, this.#given)
    this.owner.onGrown(this, this.window.bytes - before)
  }

  /** Called by a reader: it was given events up to `number`. */
  given(number: number): void {
    this.#given = Math.max(this.#given, number)
  }

  /** Called by a reader when it lags or has caught up. */
  changed(): void {
    this.#balance()
  }

  /** Called by a reader whose connection is gone. */
  left(reader: Reader): void {
    if (this.#reader !== reader) return
    this.#reader = undefined
    this.#balance()
    this.owner.onIdle(this)
  }

  #take(event: GenerateEvent): void {
    const before = this.window.bytes
    this.window.push(event)
    if (event.type === 'usage' || event.type === 'error') this.ended = true
    this.#reader?.offer()
    this.window.trim(this.owner.maxBytes, this.#given)
    this.owner.onGrown(this, this.window.bytes - before)
    this.#balance()
    if (this.ended) this.owner.onIdle(this)
  }

  /** The request runs while its reader keeps up; without a reader as long as half of the window takes what it says. */
  #balance(): void {
    if (this.ended || !this.#request) return
    const full = this.window.bytesAfter(this.#given) > this.owner.maxBytes / 2
    const paused = full || (this.#reader?.lagging ?? false)
    if (paused === this.#requestPaused) return
    this.#requestPaused = paused
    if (paused) this.#request.pause()
    else this.#request.resume()
  }
}

/** A place in a record's events. */
class Reader implements ReaderHandle {
  #paused = false
  #over = false
  #catchingUp = false

  constructor(
    private readonly record: StreamRecord,
    private readonly sink: ReaderSink,
    private at: number,
  ) {}

  /** Its connection takes nothing now. */
  get lagging(): boolean {
    return this.#paused
  }

  /** There is a new event. */
  offer(): void {
    if (!this.#paused && !this.#catchingUp) this.#deliver(Infinity)
  }

  /** Delivers what is there, a slice at a time. */
  catchUp(): void {
    if (this.#catchingUp) return
    this.#catchingUp = true
    setImmediate(() => {
      this.#catchingUp = false
      if (this.#over || this.#paused) return
      this.#deliver(SLICE)
      this.record.changed()
      if (this.at < this.record.window.last) this.catchUp()
    })
  }

  cancel(): void {
    this.record.cancel()
  }

  pause(): void {
    this.#setPaused(true)
  }

  resume(): void {
    this.#setPaused(false)
    if (!this.#over) this.catchUp()
  }

  leave(): void {
    if (this.#over) return
    this.#over = true
    this.record.left(this)
  }

  /** Another connection reads the stream now. */
  replace(): void {
    if (this.#over) return
    this.#over = true
    const error = new GatewayError('cancelled', 'the stream was resumed on another connection')
    this.sink({ type: 'error', error }, 0)
  }

  #setPaused(paused: boolean): void {
    if (this.#over || this.#paused === paused) return
    this.#paused = paused
    this.record.changed()
  }

  #deliver(count: number): void {
    for (const { number, event } of this.record.window.after(this.at, count)) {
      if (this.#over) return
      this.at = number
      this.record.given(number)
      this.sink(event, number)
    }
  }
}
