/** All streams that may be resumed: found by id and tenant, bounded in memory and time. */
import { GatewayError } from '../errors.js'
import type { GenerateHandle, GenerateSink } from '../request.js'
import { type ReaderHandle, type ReaderSink, type RecordOwner, StreamRecord, type StreamShape } from './record.js'

/** Bounds on what is kept. */
export interface StreamLimits {
  /** How long a stream goes on, and is kept after its end, without a reader, milliseconds. */
  graceMs: number
  /** Bytes of one stream: older events are dropped. */
  maxStreamBytes: number
  /** Bytes of all streams. */
  maxBytes: number
}

/** Defaults of what models.yaml does not say. */
export const STREAM_BYTES = { maxStreamBytes: 2 ** 20, maxBytes: 64 * 2 ** 20 }

/** A request to be kept. */
export interface StreamStart {
  id: string
  tenant: string
  shape: StreamShape
  generate: (sink: GenerateSink) => GenerateHandle
}

/** Owns every resumable stream, and one timer for each that nobody reads. */
export class Streams implements RecordOwner {
  #limits: StreamLimits
  readonly #records = new Map<string, StreamRecord>()
  readonly #timers = new Map<StreamRecord, NodeJS.Timeout>()
  #bytes = 0
  #closed = false

  constructor(limits: StreamLimits) {
    this.#limits = limits
  }

  /** For streams whose reader leaves from now on. */
  setGrace(graceMs: number): void {
    this.#limits = { ...this.#limits, graceMs }
  }

  get maxBytes(): number {
    return this.#limits.maxStreamBytes
  }

  /** Bytes of all streams. */
  get bytes(): number {
    return this.#bytes
  }

  get size(): number {
    return this.#records.size
  }

  /** Starts a request that outlives its connection. */
  start({ id, tenant, shape, generate }: StreamStart, sink: ReaderSink): ReaderHandle {
    const record = new StreamRecord(id, tenant, shape, this)
    this.#records.set(id, record)
    return record.start(generate, sink)
  }

  /** The stream with an id. Throws stream_not_found, also when another key's request started it. */
  find(id: string, tenant: string): StreamRecord {
    const record = this.#records.get(id)
    if (record?.tenant === tenant) return record
    throw new GatewayError('stream_not_found', 'there is no such stream, or it is no longer kept')
  }

  /** Cancels what nobody reads, now and from now on. */
  close(): void {
    this.#closed = true
    for (const record of this.#records.values()) if (!record.attached) this.#drop(record)
  }

  onGrown(_record: StreamRecord, bytes: number): void {
    this.#bytes += bytes
    if (bytes > 0 && this.#bytes > this.#limits.maxBytes) this.#makeRoom()
  }

  onIdle(record: StreamRecord): void {
    if (!this.#records.has(record.id)) return
    if (this.#closed && !record.attached) return this.#drop(record)
    clearTimeout(this.#timers.get(record))
    this.#timers.set(record, setTimeout(() => this.#expire(record), this.#limits.graceMs).unref())
  }

  onBusy(record: StreamRecord): void {
    clearTimeout(this.#timers.get(record))
    this.#timers.delete(record)
    // What has ended stays no longer for being read.
    if (record.ended) this.onIdle(record)
  }

  /** A running stream is ended, and kept once more so that its client may learn why. */
  #expire(record: StreamRecord): void {
    if (!record.ended) record.cancel()
    else if (!record.attached) this.#drop(record)
    else this.onIdle(record)
  }

  /** Takes from the tenant that holds most: streams without a reader go, the oldest first, others lose their past. */
  #makeRoom(): void {
    const held = new Map<string, number>()
    for (const { tenant, window } of this.#records.values()) {
      held.set(tenant, (held.get(tenant) ?? 0) + window.bytes)
    }
    const [greediest] = [...held].reduce((a, b) => (b[1] > a[1] ? b : a), ['', -1] as [string, number])
    const mine = [...this.#records.values()].filter(({ tenant }) => tenant === greediest)
    const order = [...mine.filter(({ attached }) => !attached), ...mine.filter(({ attached }) => attached)]
    for (const record of order) {
      if (this.#bytes <= this.#limits.maxBytes) return
      if (record.attached) record.forget()
      else this.#drop(record)
    }
  }

  #drop(record: StreamRecord): void {
    if (!this.#records.delete(record.id)) return
    clearTimeout(this.#timers.get(record))
    this.#timers.delete(record)
    record.cancel()
    this.#bytes -= record.window.bytes
  }
}
