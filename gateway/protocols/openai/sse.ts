/** Server-sent events on a raw Node response: one write per burst of events, back pressure, pings, a limit on stalls. */
import type { ServerResponse } from 'node:http'

/** Milliseconds of one stream's patience. */
export interface StreamTimes {
  /** Silence after which a comment keeps proxies from closing the connection. */
  pingMs: number
  /** How long a reader may leave its buffer full before it is cut off. */
  stallMs: number
}

/** What a stream tells the work behind it. */
interface StreamOwner {
  pause(): void
  resume(): void
}

/** Gives the last of some whole events an id. */
export function withEventId(events: string, id: string): string {
  return events === '' ? '' : `${events.slice(0, -1)}id: ${id}\n\n`
}

const PING = ': ping\n\n'

/** What the heartbeat looks at. */
interface Watched {
  beat(now: number, times: StreamTimes): void
}

/** Cuts off a reader that has not taken a whole answer within the time of one stall; nothing when it already has. */
export function boundEnd(outgoing: ServerResponse, heartbeat: Heartbeat): void {
  if (outgoing.destroyed || outgoing.writableLength === 0) return
  const ended = performance.now()
  const watched: Watched = {
    beat(now, { stallMs }) {
      if (now - ended >= stallMs) outgoing.destroy()
    },
  }
  heartbeat.add(watched)
  outgoing.once('close', () => heartbeat.delete(watched))
}

/**
 * Bytes a stream may hold for a reader that lags, over those of the burst that filled its buffer: a burst is what was asked
 * for, however much that is (an echoed prompt with log probabilities), and pausing the source leaves little in flight.
 */
const MAX_LATE = 1024 * 1024

/** One streamed response. It belongs to its `Heartbeat` until the response closes. */
export class SseStream implements Watched {
  readonly #outgoing: ServerResponse
  readonly #owner: StreamOwner
  #pending = ''
  #scheduled = false
  #ending = false
  #lastWrite = 0
  /** When the reader's buffer became full; undefined while it takes more. */
  #fullSince: number | undefined
  /** Bytes that the buffer may hold while it is full; looked at before each write. */
  #limit = 0

  constructor(outgoing: ServerResponse, owner: StreamOwner, heartbeat: Heartbeat) {
    this.#outgoing = outgoing
    this.#owner = owner
    this.#lastWrite = performance.now()
    heartbeat.add(this)
    outgoing.on('drain', () => this.#drained())
    outgoing.once('close', () => heartbeat.delete(this))
  }

  /** Queues whole events; all that come in one turn of the event loop are written together. */
  push(events: string): void {
    this.#pending += events
    this.#schedule()
  }

  /** Ends the response after what was pushed. */
  end(): void {
    this.#ending = true
    this.#schedule()
  }

  /** Called by the heartbeat. */
  beat(now: number, { pingMs, stallMs }: StreamTimes): void {
    if (this.#fullSince !== undefined) {
      if (now - this.#fullSince >= stallMs) this.#outgoing.destroy()
    } else if (now - this.#lastWrite >= pingMs) {
      this.push(PING)
    }
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    queueMicrotask(() => this.#flush())
  }

  #flush(): void {
    this.#scheduled = false
    const events = this.#pending
    this.#pending = ''
    if (this.#outgoing.destroyed || this.#outgoing.writableEnded) return
    if (this.#fullSince !== undefined && this.#outgoing.writableLength > this.#limit) {
      this.#outgoing.destroy()
      return
    }
    this.#lastWrite = performance.now()
    if (this.#ending) {
      this.#outgoing.end(events)
      // From here the whole rest has to be read within the time of one stall.
      this.#fullSince ??= this.#lastWrite
    } else if (!this.#outgoing.write(events)) this.#full()
  }

  #full(): void {
    if (this.#fullSince !== undefined) return
    this.#fullSince = this.#lastWrite
    this.#limit = this.#outgoing.writableLength + MAX_LATE
    this.#owner.pause()
  }

  #drained(): void {
    if (this.#fullSince === undefined || this.#ending) return
    this.#fullSince = undefined
    this.#owner.resume()
  }
}

/** The one timer of all slow or streamed responses of a server; it runs only while there are any. */
export class Heartbeat {
  readonly #times: StreamTimes
  readonly #watched = new Set<Watched>()
  #timer: NodeJS.Timeout | undefined

  constructor(times: StreamTimes) {
    this.#times = times
  }

  add(watched: Watched): void {
    this.#watched.add(watched)
    const period = Math.max(1, Math.min(this.#times.pingMs, this.#times.stallMs) / 4)
    this.#timer ??= setInterval(() => this.#beat(), period)
  }

  delete(watched: Watched): void {
    this.#watched.delete(watched)
    if (this.#watched.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  #beat(): void {
    const now = performance.now()
    for (const watched of this.#watched) watched.beat(now, this.#times)
  }
}
