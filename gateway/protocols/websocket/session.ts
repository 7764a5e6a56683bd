/** One chat socket: its running requests, what it may send, when it ends. */
import { type RawData, WebSocket } from 'ws'
import type { z } from 'zod'
import { GatewayError, toGatewayError } from '../../errors.js'
import type { ReaderHandle, ReaderSink } from '../../resume/record.js'
import type { Services } from '../../services.js'
import { type Call, decodeChat, decodeCompletion, type DecodeServices } from '../decode.js'
import { dryRun } from '../route.js'
import { startCall } from '../start.js'
import { isRecord, parseBody } from '../fields.js'
import { newRequestId, type Origin } from '../origin.js'
import { encodeError, encodeRoute, EventEncoder, PONG } from './encode.js'
import { cancelSchema, FORM_FIELDS, isRequestId, pingSchema, resumeSchema, routeSchema } from './messages.js'
import { Outbox, type OutboxBounds, type OutboxOwner } from './outbox.js'

/** Bounds and times of a socket. */
export interface SessionSettings {
  outbox: OutboxBounds
  /** Requests one socket may have running. */
  maxRunning: number
  /** Unreadable messages in a row after which the socket is closed. */
  maxBadMessages: number
  /** Milliseconds a reader may leave the queue above its low mark. */
  stallMs: number
  /** Milliseconds without a request or message after which the socket is closed. */
  idleMs: number
}

/** Close codes of RFC 6455 that we send. */
const CLOSE = { normal: 1000, goingAway: 1001, unsupported: 1003, policy: 1008, tryLater: 1013 } as const

/** What a request tells, and from where on. */
interface Told {
  requestId: string
  /** Number of the last event that the client has; 0 = none. */
  after: number
  start: (sink: ReaderSink) => ReaderHandle
}

interface Running {
  handle: ReaderHandle | undefined
}

/** What the upgrade request said; `token` is the caller's key. */
export type SocketOrigin = Origin & { token: string | undefined }

/** One socket. Owns its requests: whatever ends the socket cancels them at once. */
export class Session implements OutboxOwner {
  private readonly running = new Map<string, Running>()
  private readonly outbox: Outbox
  private badMessages = 0
  private alive = true
  private draining = false
  private over = false
  private activeAt = performance.now()

  /** `origin` is read from the upgrade request; `onClose` is called once, when the socket is gone. */
  constructor(
    private readonly socket: WebSocket,
    private readonly origin: SocketOrigin,
    private readonly services: Services,
    private readonly settings: SessionSettings,
    onClose: () => void,
  ) {
    this.outbox = new Outbox(socket, settings.outbox, this)
    socket.on('message', (data, isBinary) => this.receive(data, isBinary))
    socket.on('pong', () => (this.alive = true))
    socket.on('ping', (data) => {
      this.alive = true
      this.outbox.pong(data)
    })
    // A broken frame; the library closes the socket with the code that fits.
    socket.on('error', () => this.abandon())
    socket.on('close', () => {
      this.abandon()
      onClose()
    })
  }

  /** Called by the server's one timer: ends dead, stalled and idle sockets, pings the others. */
  sweep(now: number): void {
    const { congestedSince } = this.outbox
    if (congestedSince !== undefined) {
      // Pings wait behind the data of a slow reader, so it is judged by its queue instead.
      if (now - congestedSince > this.settings.stallMs) this.end(CLOSE.tryLater, 'the reader is too slow')
      return
    }
    if (!this.alive) return this.socket.terminate()
    if (this.running.size === 0 && now - this.activeAt > this.settings.idleMs) return this.end(CLOSE.normal, 'idle')
    this.alive = false
    if (this.socket.readyState === WebSocket.OPEN) this.socket.ping()
  }

  /** Takes no new request and closes the socket once the running ones have ended. */
  drain(): void {
    this.draining = true
    if (this.running.size === 0) this.end(CLOSE.goingAway, 'the server is shutting down')
  }

  /** Cancels what runs and closes the socket. */
  end(code: number, reason: string): void {
    this.abandon()
    this.socket.close(code, reason)
  }

  /** Ends the socket because the server does. */
  shutDown(): void {
    this.end(CLOSE.goingAway, 'the server is shutting down')
  }

  /** Drops the connection without a word. */
  terminate(): void {
    this.socket.terminate()
  }

  onCongested(): void {
    for (const { handle } of this.running.values()) handle?.pause()
  }

  onDrained(): void {
    for (const { handle } of this.running.values()) handle?.resume()
  }

  onOverflow(): void {
    this.end(CLOSE.tryLater, 'the reader is too slow')
  }

  private receive(data: RawData, isBinary: boolean): void {
    if (this.over) return
    this.alive = true
    this.activeAt = performance.now()
    if (isBinary || !Buffer.isBuffer(data)) return this.end(CLOSE.unsupported, 'only text messages are understood')
    const message = readObject(data)
    if (!message) return this.refuse(new GatewayError('invalid_request', 'the message is not a JSON object'))
    this.dispatch(message)
  }

  private dispatch(message: Record<string, unknown>): void {
    const { type, id, ...body } = message
    if ((type === 'chat' || type === 'completion') && isRequestId(id)) {
      this.badMessages = 0
      return this.start(type, id, body)
    }
    try {
      this.control(message)
      this.badMessages = 0
    } catch (error) {
      this.refuse(toGatewayError(error), isRequestId(id) ? id : undefined)
    }
  }

  /** Everything but a well-formed start. Throws for what cannot be understood. */
  private control(message: Record<string, unknown>): void {
    switch (message['type']) {
      case 'cancel':
        return this.running.get(parseBody(cancelSchema, message).id)?.handle?.cancel()
      case 'resume':
        return this.resume(parseBody(resumeSchema, message))
      case 'route':
        return this.route(parseBody(routeSchema, message))
      case 'ping':
        parseBody(pingSchema, message)
        return this.outbox.send(PONG)
      case 'chat':
      case 'completion':
        throw new GatewayError('invalid_request', 'id must be a string of 1 to 64 characters', { param: 'id' })
      default:
        throw new GatewayError('invalid_request', 'type must be chat, completion, resume, route, cancel or ping', {
          param: 'type',
        })
    }
  }

  /** Answers an unreadable message; a peer that sends nothing else is not one of ours. */
  private refuse(error: GatewayError, id?: string): void {
    this.outbox.send(encodeError(error, id))
    if (++this.badMessages >= this.settings.maxBadMessages) this.end(CLOSE.policy, 'too many unreadable messages')
  }

  private start(type: 'chat' | 'completion', id: string, body: Record<string, unknown>): void {
    try {
      this.checkRoom(id)
      const { access, limits } = this.services
      // Every time: a key may have been revoked since the socket was opened.
      const grant = access.admit(this.origin.token)
      const call = this.decode(type, body, { limits, models: grant.models })
      const start = (sink: ReaderSink): ReaderHandle => startCall(call, grant, this.services.streams, sink)
      this.run(id, { requestId: call.requests[0].id, after: 0, start })
    } catch (error) {
      this.outbox.send(encodeError(toGatewayError(error), id))
    }
  }

  /** Goes on with a stream whose connection was lost. Its failures are the request's, not the message's. */
  private resume({ id, request_id: requestId, after }: z.infer<typeof resumeSchema>): void {
    try {
      this.checkRoom(id)
      const { tenant } = this.services.access.admit(this.origin.token)
      const record = this.services.streams.find(requestId, tenant)
      this.run(id, { requestId, after, start: (sink) => record.attach(sink, after) })
    } catch (error) {
      this.outbox.send(encodeError(toGatewayError(error), id))
    }
  }

  /** Answers a dry run; it takes a place like any request, since a prompt may be long. */
  private route({ id, request }: z.infer<typeof routeSchema>): void {
    try {
      this.checkRoom(id)
      const { access, limits } = this.services
      const { models } = access.admit(this.origin.token)
      this.running.set(id, { handle: undefined })
      void this.decideRoute(id, request, { limits, models })
    } catch (error) {
      this.outbox.send(encodeError(toGatewayError(error), id))
    }
  }

  private async decideRoute(id: string, request: object, services: DecodeServices): Promise<void> {
    let message: string
    try {
      message = encodeRoute(id, await dryRun(request, { ...this.origin, id: newRequestId() }, services))
    } catch (error) {
      message = encodeError(toGatewayError(error), id)
    }
    if (this.over) return
    this.outbox.send(message)
    this.forget(id)
  }

  private checkRoom(id: string): void {
    if (this.draining) throw new GatewayError('shutting_down', 'the server is shutting down')
    if (this.running.has(id)) {
      throw new GatewayError('invalid_request', 'a request with this id is still running', { param: 'id' })
    }
    const { maxRunning } = this.settings
    if (this.running.size >= maxRunning) {
      throw new GatewayError('queue_full', `more than ${maxRunning} requests at a time on one socket`)
    }
  }

  private decode(type: 'chat' | 'completion', body: Record<string, unknown>, services: DecodeServices): Call {
    for (const param of Object.keys(FORM_FIELDS)) {
      if (!Object.hasOwn(body, param)) continue
      throw new GatewayError(
        'unsupported_parameter',
        `${param} has no meaning here: every answer streams, with its token ids`,
        { param },
      )
    }
    const origin = { ...this.origin, id: newRequestId(), streams: true }
    return type === 'chat' ? decodeChat(body, origin, services) : decodeCompletion(body, origin, services)
  }

  private run(id: string, { requestId, after, start }: Told): void {
    const encoder = new EventEncoder(id, requestId)
    const entry: Running = { handle: undefined }
    this.running.set(id, entry)
    const take: ReaderSink = (event, number) => {
      // A socket that is over has forgotten its requests; their last events have nowhere to go.
      if (this.over) return
      const last = event.type === 'usage' || event.type === 'error'
      // The end is told in any case: nothing else frees the id.
      if (number === 0 || number > after || last) this.outbox.send(encoder.encode(event, number))
      if (last) this.forget(id)
    }
    try {
      entry.handle = start(take)
    } catch (error) {
      this.running.delete(id)
      throw error
    }
    if (this.over || !this.running.has(id)) entry.handle.leave()
    else if (this.outbox.congestedSince !== undefined) entry.handle.pause()
  }

  private forget(id: string): void {
    this.running.get(id)?.handle?.leave()
    this.running.delete(id)
    if (this.draining && this.running.size === 0) this.shutDown()
  }

  private abandon(): void {
    this.over = true
    const entries = [...this.running.values()]
    this.running.clear()
    for (const { handle } of entries) handle?.leave()
  }
}

function readObject(data: Buffer): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(data.toString())
    return isRecord(value) ? value : undefined
  } catch {
    return undefined
  }
}
