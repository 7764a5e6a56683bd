/** Starts decoded calls: those that can be resumed in the store of streams, the others for their connection alone. */
import { GatewayError } from '../errors.js'
import type { GenerateSink } from '../request.js'
import type { ReaderHandle, ReaderSink } from '../resume/record.js'
import type { Streams } from '../resume/streams.js'
import type { Grant } from '../services.js'
import type { Call } from './decode.js'
import { generateAll } from './merge.js'

/** Starts a call; its events are numbered when it can be resumed. */
export function startCall(call: Call, grant: Grant, streams: Streams, sink: ReaderSink): ReaderHandle {
  const { requests, kind, resumable, includeUsage, includeTokenIds } = call
  const generate = (inner: GenerateSink) => generateAll(grant.generator, requests, inner)
  if (resumable) {
    const choices = requests.length * requests[0].n
    const shape = { kind, choices, includeUsage, includeTokenIds }
    return streams.start({ id: requests[0].id, tenant: grant.tenant, shape, generate }, sink)
  }
  const handle = generate((event) => sink(event, 0))
  return {
    cancel: () => handle.cancel(),
    pause: () => handle.pause(),
    resume: () => handle.resume(),
    leave: () => handle.cancel(),
  }
}

/** Throws for a call that asks to be resumable where only streams are. */
export function checkResumable({ resumable }: Call, streams: boolean): void {
  if (!resumable || streams) return
  throw new GatewayError('invalid_request', 'resumable is only allowed for streams', { param: 'resumable' })
}
