/** The calls of edgeshift.v1.Gateway. */
import type {
  handleServerStreamingCall,
  handleUnaryCall,
  Metadata,
  sendUnaryData,
  UntypedServiceImplementation,
} from '@grpc/grpc-js'
import type {
  DetokenizeRequest,
  DetokenizeResponse,
  GenerateEvent,
  GenerateResponse,
  ListModelsRequest,
  ListModelsResponse,
  ResumeRequest,
  RouteRequest,
  RouteResponse,
  TokenizeRequest,
  TokenizeResponse,
} from '../../../proto/gen/edgeshift/v1/gateway.js'
import type { Grant, Services } from '../../services.js'
import type { ReaderSink } from '../../resume/record.js'
import type { Call, DecodeServices } from '../decode.js'
import { type Origin, readOrigin } from '../origin.js'
import { dryRun } from '../route.js'
import { checkResumable, startCall } from '../start.js'
import { chatCall, completionCall, detokenizeRequest, routeBody, tokenizeRequest } from './decode.js'
import { type Decoded, requireDecoded } from './definition.js'
import { encodeDryRun, encodeModel } from './encode.js'
import { respond, stream } from './generate.js'
import { callToken, entryOf } from './metadata.js'
import { errorStatus } from './status.js'

/** What a call of either shape tells beside its request. */
interface CallHead {
  metadata: Metadata
  getDeadline(): Date | number
}

type Decode<T> = (request: T, origin: Origin, services: DecodeServices) => Call

/** Implements the service; `stallMs` bounds how long a streaming client may leave its window full. */
export function gatewayCalls(services: Services, stallMs: number): UntypedServiceImplementation {
  return {
    chat: respondTo(services, chatCall),
    chatStream: streamTo(services, stallMs, chatCall),
    complete: respondTo(services, completionCall),
    completeStream: streamTo(services, stallMs, completionCall),
    resume: resume(services, stallMs),
    route: route(services),
    listModels: listModels(services),
    tokenize: tokenize(services),
    detokenize: detokenize(services),
  }
}

function respondTo<T>(services: Services, decode: Decode<T>): handleUnaryCall<Decoded<T>, GenerateResponse> {
  return (call, callback) => {
    try {
      const { tenant, models, generator } = admit(call, services)
      const origin = callOrigin(call, tenant, services)
      const decoded = decode(requireDecoded(call.request), origin, { limits: services.limits, models })
      checkResumable(decoded, false)
      respond(generator, decoded.requests[0], call, callback)
    } catch (error) {
      callback(errorStatus(error))
    }
  }
}

function streamTo<T>(
  services: Services,
  stallMs: number,
  decode: Decode<T>,
): handleServerStreamingCall<Decoded<T>, GenerateEvent> {
  return (call) => {
    try {
      const grant = admit(call, services)
      const origin = { ...callOrigin(call, grant.tenant, services), streams: true }
      const decoded = decode(requireDecoded(call.request), origin, { limits: services.limits, models: grant.models })
      const start = (sink: ReaderSink) => startCall(decoded, grant, services.streams, sink)
      stream({ id: origin.id, after: 0, start }, call, stallMs)
    } catch (error) {
      call.emit('error', errorStatus(error))
    }
  }
}

function resume(services: Services, stallMs: number): handleServerStreamingCall<Decoded<ResumeRequest>, GenerateEvent> {
  return (call) => {
    try {
      const { tenant } = admit(call, services)
      const { id, after } = requireDecoded(call.request)
      const record = services.streams.find(id, tenant)
      stream({ id, after, start: (sink) => record.attach(sink, after) }, call, stallMs)
    } catch (error) {
      call.emit('error', errorStatus(error))
    }
  }
}

function route(services: Services): handleUnaryCall<Decoded<RouteRequest>, RouteResponse> {
  return (call, callback) =>
    void settle(callback, async () => {
      const { tenant, models } = admit(call, services)
      const origin = callOrigin(call, tenant, services)
      const body = routeBody(requireDecoded(call.request))
      return encodeDryRun(await dryRun(body, origin, { limits: services.limits, models }))
    })
}

function listModels(services: Services): handleUnaryCall<Decoded<ListModelsRequest>, ListModelsResponse> {
  return (call, callback) =>
    void settle(callback, async () => {
      const { models } = admit(call, services)
      requireDecoded(call.request)
      return { models: models.list().map(encodeModel) }
    })
}

function tokenize(services: Services): handleUnaryCall<Decoded<TokenizeRequest>, TokenizeResponse> {
  return (call, callback) =>
    void settle(callback, async () => {
      const { models } = admit(call, services)
      const { model, text, parseSpecial } = tokenizeRequest(requireDecoded(call.request))
      const { maxModelLen } = models.find(model)
      return { tokens: await models.tokenize(model, text, parseSpecial), maxModelLen }
    })
}

function detokenize(services: Services): handleUnaryCall<Decoded<DetokenizeRequest>, DetokenizeResponse> {
  return (call, callback) =>
    void settle(callback, async () => {
      const { models } = admit(call, services)
      const { model, tokens } = detokenizeRequest(requireDecoded(call.request), { models })
      return { text: await models.detokenize(model, tokens) }
    })
}

/** Answers a unary call with what `work` resolves to, or with its error's status. Never rejects. */
async function settle<T>(callback: sendUnaryData<T>, work: () => Promise<T>): Promise<void> {
  let value: T
  try {
    value = await work()
  } catch (error) {
    callback(errorStatus(error))
    return
  }
  callback(null, value)
}

/** What the caller may use. Throws unauthorized. */
function admit({ metadata }: Pick<CallHead, 'metadata'>, { access }: Services): Grant {
  return access.admit(callToken(metadata))
}

/** Metadata and deadline of a call; of repeated entries the first counts. Logs the client's own request id. */
function callOrigin(call: CallHead, tenant: string, { log }: Services): Origin {
  const origin = readOrigin((name) => entryOf(call.metadata, name), tenant)
  const { id, clientRequestId } = origin
  if (clientRequestId !== undefined) log.info({ id, clientRequestId }, 'request')
  const deadline = Number(call.getDeadline())
  // A deadline in the past is still one: 0 would mean none.
  return Number.isFinite(deadline) ? { ...origin, deadlineMs: Math.max(1, deadline - Date.now()) } : origin
}
