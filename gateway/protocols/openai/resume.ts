/** Streams that are read again over HTTP: by Last-Event-ID, as EventSource sends it, or by id. */
import type { IncomingHttpHeaders } from 'node:http'
import { GatewayError } from '../../errors.js'

/** A place in a stream: its id and the number of the last event that the client has. */
export interface Place {
  id: string
  after: number
}

const EVENT_ID = /^(req-[0-9a-f-]{36}):(\d{1,15})$/

/** Where a client wants to go on: the header Last-Event-ID of an event of ours; undefined without the header. */
export function lastEvent(headers: IncomingHttpHeaders): Place | undefined {
  const header = headers['last-event-id']
  if (header === undefined || header === '') return undefined
  const [, id, number] = EVENT_ID.exec(String(header)) ?? []
  if (id !== undefined) return { id, after: Number(number) }
  throw new GatewayError('invalid_request', 'last-event-id is not the id of an event of this server', {
    param: 'last-event-id',
  })
}

/** Where to go on in the stream that a path names: after its event of the header, from the start without one. */
export function placeIn(id: string, headers: IncomingHttpHeaders): Place {
  const place = lastEvent(headers) ?? { id, after: 0 }
  if (place.id === id) return place
  throw new GatewayError('invalid_request', 'last-event-id belongs to another stream', { param: 'last-event-id' })
}
