/** Runs generation requests for gRPC calls: events out, cancellation and back pressure in. */
import type { Metadata, sendUnaryData, ServerUnaryCall, ServerWritableStream } from '@grpc/grpc-js'
import type { GenerateEvent as EventMessage, GenerateResponse } from '../../../proto/gen/edgeshift/v1/gateway.js'
import { GatewayError } from '../../errors.js'
import type { GenerateEvent, GenerateRequest, Generator } from '../../request.js'
import type { ReaderHandle, ReaderSink } from '../../resume/record.js'
import { encodeEvent, ResponseBuilder } from './encode.js'
import { errorStatus, servedMetadata } from './status.js'

/** Answers a unary call with the whole text. A cancelled or expired call cancels its request at once. */
export function respond<T>(
  generator: Generator,
  request: GenerateRequest,
  call: ServerUnaryCall<T, GenerateResponse>,
  callback: sendUnaryData<GenerateResponse>,
): void {
  const builder = new ResponseBuilder(request.id, request.n)
  let served: Metadata | undefined
  const handle = generator.generate(request, (event) => {
    if (event.type === 'error') return callback(errorStatus(event.error, served))
    builder.add(event)
    if (event.type === 'started') {
      served = servedMetadata(event.variant, event.reason)
      call.sendMetadata(served)
    }
    if (event.type === 'degraded') served = servedMetadata(event.variant, event.reason, event.cause)
    if (event.type === 'usage') callback(null, builder.build(), served)
  })
  call.on('cancelled', () => handle.cancel())
  if (call.cancelled) handle.cancel()
}

/** What a streaming call tells. */
export interface Told {
  /** Id of the request. */
  id: string
  /** Number of the last event that the client has; 0 = none. */
  after: number
  /** Starts the request, or reads one again. */
  start: (sink: ReaderSink) => ReaderHandle
}

/** Streams a request's events into a call. `stallMs`: how long a reader may leave its flow-control window full. */
export function stream<T>(told: Told, call: ServerWritableStream<T, EventMessage>, stallMs: number): void {
  new StreamedCall(told, call, stallMs).start()
}

/** One streaming call. Owns its request and, while the reader lags, one timer. */
class StreamedCall<T> {
  private handle: ReaderHandle | undefined
  private served: Metadata | undefined
  private stall: NodeJS.Timeout | undefined
  private over = false

  constructor(
    private readonly told: Told,
    private readonly call: ServerWritableStream<T, EventMessage>,
    private readonly stallMs: number,
  ) {}

  start(): void {
    this.call.on('cancelled', () => this.abandon())
    this.call.on('drain', () => this.resume())
    this.handle = this.told.start((event, number) => this.take(event, number))
    // Events may come before the handle does, and so may the client's end.
    if (this.over || this.call.cancelled) this.handle.leave()
    else if (this.call.writableNeedDrain) this.pause()
  }

  private take(event: GenerateEvent, number: number): void {
    if (this.over) return
    if (event.type === 'error') return this.fail(event.error)
    if (event.type === 'started') {
      this.served = servedMetadata(event.variant, event.reason)
      this.call.sendMetadata(this.served)
    }
    if (event.type === 'degraded') this.served = servedMetadata(event.variant, event.reason, event.cause)
    const { id, after } = this.told
    if (number === 0 || number > after) this.write({ ...encodeEvent(id, event), number })
    if (event.type !== 'usage') return
    this.abandon()
    this.call.end(this.served)
  }

  private write(message: EventMessage): void {
    if (!this.call.write(message)) this.pause()
  }

  private pause(): void {
    if (this.stall || this.over || !this.handle) return
    this.handle.pause()
    this.stall = setTimeout(() => {
      this.fail(new GatewayError('cancelled', `the client read nothing for ${this.stallMs} ms`))
    }, this.stallMs)
  }

  private resume(): void {
    if (!this.stall) return
    clearTimeout(this.stall)
    this.stall = undefined
    if (!this.over) this.handle?.resume()
  }

  private fail(error: GatewayError): void {
    this.abandon()
    this.call.emit('error', errorStatus(error, this.served))
  }

  /** The request has ended, the client went away, or its deadline passed. */
  private abandon(): void {
    this.over = true
    clearTimeout(this.stall)
    this.stall = undefined
    this.handle?.leave()
  }
}
