/** The bounded send queue of one socket. */
import { WebSocket } from 'ws'

/** Bytes of a socket's queue. */
export interface OutboxBounds {
  /** Above: the socket's requests are paused. */
  highBytes: number
  /** At or below: they go on. */
  lowBytes: number
  /**
   * The queue may grow by so much over what the burst left that brought it above the high mark; then the socket is given
   * up. A burst is what was asked for, however much that is; what a paused engine still delivers fits in between.
   */
  lateBytes: number
}

/** What the owner does when the queue passes a mark. */
export interface OutboxOwner {
  onCongested(): void
  onDrained(): void
  onOverflow(): void
}

/** Sends text messages and watches the queue: by send callbacks, and only while it is above the low mark. */
export class Outbox {
  /** Milliseconds (performance.now) at which the high mark was passed; undefined while the reader keeps up. */
  congestedSince: number | undefined
  /** The messages that brought the queue above the high mark are still coming. */
  private inBurst = false
  /** Bytes that the queue may hold while it is above; looked at before each message. */
  private limit = 0

  constructor(
    private readonly socket: WebSocket,
    private readonly bounds: OutboxBounds,
    private readonly owner: OutboxOwner,
  ) {}

  /** Queues one message; dropped when the socket is closing. */
  send(text: string): void {
    const { socket, bounds } = this
    if (socket.readyState !== WebSocket.OPEN) return
    const queued = socket.bufferedAmount
    if (this.congestedSince !== undefined && queued > this.limit) {
      this.owner.onOverflow()
      return
    }
    if (this.congestedSince === undefined && queued + text.length <= bounds.highBytes) {
      socket.send(text)
      return
    }
    socket.send(text, this.flushed)
    if (this.congestedSince === undefined) this.congest()
    if (this.inBurst) this.limit = socket.bufferedAmount + bounds.lateBytes
  }

  /** Answers a protocol ping unless the queue is long: a flood of pings must not grow it. */
  pong(data: Buffer): void {
    if (this.socket.readyState === WebSocket.OPEN && this.socket.bufferedAmount <= this.bounds.highBytes) {
      this.socket.pong(data)
    }
  }

  private congest(): void {
    this.congestedSince = performance.now()
    this.inBurst = true
    // One step's news of all choices comes in one turn.
    queueMicrotask(() => (this.inBurst = false))
    this.owner.onCongested()
  }

  private readonly flushed = (): void => {
    if (this.congestedSince === undefined || this.socket.bufferedAmount > this.bounds.lowBytes) return
    this.congestedSince = undefined
    this.owner.onDrained()
  }
}
