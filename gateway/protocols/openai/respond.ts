/** Runs a decoded call and answers it on the raw response, whole or as a stream. */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { Logger } from 'pino'
import type { Exchange } from '../../middleware/context.js'
import { headerValue, noteError, sendError, sendText } from '../../middleware/reply.js'
import type { DegradedEvent, GenerateEvent, GenerateHandle, Generator, Usage } from '../../request.js'
import type { Call } from '../decode.js'
import { generateAll } from '../merge.js'
import { type AnswerEncoder, Collected, type Served } from './answer.js'
import { type ChunkEncoder, type ChunkEncoderFactory, DONE } from './chunks.js'
import { boundEnd, type Heartbeat, SseStream } from './sse.js'

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
  generator: Generator
  heartbeat: Heartbeat
  log: Logger
}

/** Starts the call. The response ends with it; a client that goes away cancels it. */
export function respond(call: Call, responding: Responding): void {
  const responder = call.stream ? new StreamedResponder(call, responding) : new WholeResponder(call, responding)
  responder.start()
}

/** One request's response; owns the request until either ends. */
abstract class Responder {
  protected readonly call: Call
  protected readonly responding: Responding
  protected readonly choices: number
  protected served: Served | undefined
  protected handle: GenerateHandle | undefined
  #gone = false

  constructor(call: Call, responding: Responding) {
    this.call = call
    this.responding = responding
    this.choices = call.requests.length * call.requests[0].n
  }

  start(): void {
    const { outgoing, generator } = this.responding
    outgoing.once('close', () => this.#close())
    this.handle = generateAll(generator, this.call.requests, (event) => this.#take(event))
    // Events may come before the handle does, and so may the client's end.
    if (this.#gone || outgoing.destroyed) this.handle.cancel()
    else this.began(this.handle)
  }

  protected abstract began(handle: GenerateHandle): void
  protected abstract opened(served: Served, headers: OutgoingHttpHeaders): void
  protected abstract add(event: Extract<GenerateEvent, { type: 'text' | 'finished' }>): void
  protected abstract degraded(event: DegradedEvent): void
  protected abstract complete(usage: Usage): void
  protected abstract fail(error: Extract<GenerateEvent, { type: 'error' }>['error']): void

  #take(event: GenerateEvent): void {
    if (this.#gone) return
    switch (event.type) {
      case 'started':
        return this.#open(event.variant, event.reason)
      case 'degraded':
        this.responding.exchange.variant = event.variant
        return this.degraded(event)
      case 'usage':
        return this.complete(event.usage)
      case 'error':
        return this.fail(noteError(this.responding.exchange, event.error, this.responding.log))
      default:
        return this.add(event)
    }
  }

  #open(variant: string, reason: string): void {
    const { exchange, endpoint } = this.responding
    exchange.variant = variant
    const id = endpoint.idPrefix + exchange.id.slice('req-'.length)
    this.served = { id, created: Math.floor(Date.now() / 1000), variant }
    this.opened(this.served, servedHeaders(variant, reason))
  }

  /** Cancelling what has ended does nothing, so there is no need to know. */
  #close(): void {
    this.#gone = true
    this.handle?.cancel()
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
    const { outgoing, endpoint, heartbeat } = this.responding
    if (!this.served) return
    const answer = endpoint.answer(this.served, this.#collected, usage, this.call.includeTokenIds)
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

  protected began(handle: GenerateHandle): void {
    if (this.#full) handle.pause()
  }

  protected opened(served: Served, headers: OutgoingHttpHeaders): void {
    const { outgoing, endpoint, heartbeat } = this.responding
    outgoing.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
      ...headers,
    })
    this.#encoder = endpoint.chunks(served, this.call)
    this.#stream = new SseStream(outgoing, this, heartbeat)
    for (let index = 0; index < this.choices; index++) this.#push(this.#encoder.opening(index))
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
    this.#push(event.type === 'text' ? encoder.text(event) : encoder.finished(event.index, event.reason))
  }

  protected degraded(event: DegradedEvent): void {
    this.#push(this.#encoder?.degraded(event) ?? '')
  }

  protected complete(usage: Usage): void {
    if (this.call.includeUsage) this.#push(this.#encoder?.usage(usage) ?? '')
    this.#push(DONE)
    this.#stream?.end()
  }

  protected fail(error: Parameters<typeof sendError>[1]): void {
    if (!this.#stream) return sendError(this.responding.outgoing, error)
    this.#push(`data: ${JSON.stringify(error.toObject())}\n\n`)
    this.#stream.end()
  }

  #push(events: string): void {
    if (events !== '') this.#stream?.push(events)
  }
}
