/** Runs a decoded call and answers it on the raw response, whole or as a stream. */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { Logger } from 'pino'
import type { Exchange } from '../../middleware/context.js'
import { headerValue, noteError, sendError, sendText } from '../../middleware/reply.js'
import type { DegradedEvent, GenerateEvent, Usage } from '../../request.js'
import type { ReaderHandle, ReaderSink, StreamShape } from '../../resume/record.js'
import { type AnswerEncoder, Collected, type Served } from './answer.js'
import { type ChunkEncoder, type ChunkEncoderFactory, DONE } from './chunks.js'
import { boundEnd, type Heartbeat, SseStream, withEventId } from './sse.js'

/** How one endpoint names and encodes its answers. */
export interface Endpoint {
  /** Of the answer's id: "chatcmpl-" or "cmpl-". */
  idPrefix: string
  answer: AnswerEncoder
  chunks: ChunkEncoderFactory
}

/** What an answer needs beside the call. */
export interface Responding {
  outgoing: ServerResponse
  exchange: Exchange
  endpoint: Endpoint
  heartbeat: Heartbeat
  log: Logger
  /** Form of the answer. */
  shape: AnswerShape
  /** Starts the request, or reads one again. */
  start: (sink: ReaderSink) => ReaderHandle
}

/** What is answered, and from where on. */
interface AnswerShape extends Omit<StreamShape, 'kind'> {
  stream: boolean
  /** Id of the request that is answered. */
  id: string
  /** Unix seconds. */
  created: number
  /** Number of the last event that the client has; 0 = none. */
  after: number
  /** Text offsets of the choices at the oldest event that is read again. */
  offsets?: readonly number[]
}

/** Starts the request. The response ends with it; a client that goes away leaves it. */
export function respond(responding: Responding): void {
  const responder = responding.shape.stream ? new StreamedResponder(responding) : new WholeResponder(responding)
  responder.start()
}

/** One request's response; owns the request until either ends. */
abstract class Responder {
  protected readonly responding: Responding
  protected readonly choices: number
  protected served: Served | undefined
  protected handle: ReaderHandle | undefined
  #gone = false

  constructor(responding: Responding) {
    this.responding = responding
    this.choices = responding.shape.choices
  }

  start(): void {
    const { outgoing, start } = this.responding
    outgoing.once('close', () => this.#close())
    this.handle = start((event, number) => this.#take(event, number))
    // Events may come before the handle does, and so may the client's end.
    if (this.#gone || outgoing.destroyed) this.handle.leave()
    else this.began(this.handle)
  }

  protected abstract began(handle: ReaderHandle): void
  protected abstract opened(served: Served, headers: OutgoingHttpHeaders): void
  protected abstract add(event: Extract<GenerateEvent, { type: 'text' | 'finished' }>): void
  protected abstract degraded(event: DegradedEvent): void
  protected abstract complete(usage: Usage): void
  protected abstract fail(error: Extract<GenerateEvent, { type: 'error' }>['error']): void

  /** All output of the event numbered `number` was encoded; 0 = without a number. */
  protected flush(_number: number): void {}

  #take(event: GenerateEvent, number: number): void {
    if (this.#gone) return
    this.#encode(event)
    this.flush(number)
  }

  #encode(event: GenerateEvent): void {
    switch (event.type) {
      case 'started':
        return this.#open(event.variant, event.reason)
      case 'degraded':
        this.responding.exchange.variant = event.variant
        return this.degraded(event)
      case 'usage':
        return this.#complete(event.usage)
      case 'error':
        return this.fail(noteError(this.responding.exchange, event.error, this.responding.log))
      default:
        return this.add(event)
    }
  }

  /** The request has ended well: what fails now is this answer's alone, and nobody else would tell the client. */
  #complete(usage: Usage): void {
    try {
      this.complete(usage)
    } catch (error) {
      this.fail(noteError(this.responding.exchange, error, this.responding.log))
    }
  }

  #open(variant: string, reason: string): void {
    const { exchange, endpoint, shape } = this.responding
    exchange.variant = variant
    const id = endpoint.idPrefix + shape.id.slice('req-'.length)
    this.served = { id, created: shape.created, variant }
    this.opened(this.served, servedHeaders(variant, reason))
  }

  /** Leaving what has ended does nothing, so there is no need to know. */
  #close(): void {
    this.#gone = true
    this.handle?.leave()
  }
}

function servedHeaders(variant: string, reason: string): OutgoingHttpHeaders {
  return { 'x-edgeshift-variant': headerValue(variant), 'x-edgeshift-reason': headerValue(reason) }
}

class WholeResponder extends Responder {
  readonly #collected = new Collected(this.choices)
  #headers: OutgoingHttpHeaders = {}

  protected began(): void {}

  protected opened(_served: Served, headers: OutgoingHttpHeaders): void {
    this.#headers = headers
  }

  protected add(event: GenerateEvent): void {
    this.#collected.add(event)
  }

  protected degraded({ variant, reason, cause }: DegradedEvent): void {
    if (this.served) this.served = { ...this.served, variant }
    this.#headers = { ...servedHeaders(variant, reason), 'x-edgeshift-degraded': cause }
  }

  protected complete(usage: Usage): void {
    const { outgoing, endpoint, heartbeat, shape } = this.responding
    if (!this.served) return
    const answer = endpoint.answer(this.served, this.#collected, usage, shape.includeTokenIds)
    sendText(outgoing, 200, answer, this.#headers)
    boundEnd(outgoing, heartbeat)
  }

  protected fail(error: Parameters<typeof sendError>[1]): void {
    sendError(this.responding.outgoing, error)
  }
}

class StreamedResponder extends Responder {
  #stream: SseStream | undefined
  #encoder: ChunkEncoder | undefined
  #full = false
  /** Of the event under way. */
  #output = ''
  /** What follows it and has no number. */
  #unnumbered = ''

  protected began(handle: ReaderHandle): void {
    if (this.#full) handle.pause()
  }

  protected opened(served: Served, headers: OutgoingHttpHeaders): void {
    const { outgoing, endpoint, heartbeat, shape } = this.responding
    outgoing.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
      ...headers,
    })
    // A client that has everything so far would wait for the headers until there is more.
    if (shape.after > 0) outgoing.flushHeaders()
    this.#encoder = endpoint.chunks(served, shape)
    this.#stream = new SseStream(outgoing, this, heartbeat)
    for (let index = 0; index < this.choices; index++) this.#output += this.#encoder.opening(index)
  }

  /** Called by the stream when its reader lags. */
  pause(): void {
    this.#full = true
    this.handle?.pause()
  }

  /** Called by the stream when its reader has caught up. */
  resume(): void {
    this.#full = false
    this.handle?.resume()
  }

  protected add(event: Extract<GenerateEvent, { type: 'text' | 'finished' }>): void {
    const encoder = this.#encoder
    if (!encoder) return
    this.#output += event.type === 'text' ? encoder.text(event) : encoder.finished(event.index, event.reason)
  }

  protected degraded(event: DegradedEvent): void {
    this.#output += this.#encoder?.degraded(event) ?? ''
  }

  protected complete(usage: Usage): void {
    if (this.responding.shape.includeUsage) this.#output += this.#encoder?.usage(usage) ?? ''
    this.#unnumbered = DONE
  }

  protected fail(error: Parameters<typeof sendError>[1]): void {
    if (!this.#stream) return sendError(this.responding.outgoing, error)
    this.#unnumbered = `data: ${JSON.stringify(error.toObject())}\n\n`
  }

  /** What the client has was encoded for what the encoder learns from it; the end is always told. */
  protected override flush(number: number): void {
    const { id, after } = this.responding.shape
    const output = number === 0 ? this.#output : number <= after ? '' : withEventId(this.#output, `${id}:${number}`)
    const text = output + this.#unnumbered
    if (text !== '') this.#stream?.push(text)
    if (this.#unnumbered !== '') this.#stream?.end()
    this.#output = this.#unnumbered = ''
  }
}
