/** The generated service definition with requests decoded under our own errors. */
import { BinaryReader } from '@bufbuild/protobuf/wire'
import type { ServiceDefinition } from '@grpc/grpc-js'
import {
  ChatRequest,
  CompletionRequest,
  DetokenizeRequest,
  GatewayService,
  ListModelsRequest,
  ResumeRequest,
  RouteRequest,
  TokenizeRequest,
} from '../../../proto/gen/edgeshift/v1/gateway.js'
import { GatewayError } from '../../errors.js'

/** A decoded request, or why its bytes are not one. */
export type Decoded<T> = T | GatewayError

/** Thrown by a handler's first line for bytes that are not the call's request. */
export function requireDecoded<T>(request: Decoded<T>): T {
  if (request instanceof GatewayError) throw request
  return request
}

const strictDecoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/**
 * Decodes with broken UTF-8 refused, as proto3 asks. Failures are returned: the library would turn a throw into
 * INTERNAL and drop its text, but bad bytes are the client's fault.
 */
function decodeStrictly<T>(type: { decode(reader: BinaryReader): T }): (bytes: Buffer) => Decoded<T> {
  return (bytes) => {
    try {
      return type.decode(new BinaryReader(bytes, (text) => strictDecoder.decode(text)))
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : 'unreadable'
      return new GatewayError('invalid_request', `the request is not a valid message: ${reason}`, { cause })
    }
  }
}

/** GatewayService as served: every request is `Decoded`. */
export const servedDefinition: ServiceDefinition = {
  chat: { ...GatewayService.chat, requestDeserialize: decodeStrictly(ChatRequest) },
  chatStream: { ...GatewayService.chatStream, requestDeserialize: decodeStrictly(ChatRequest) },
  complete: { ...GatewayService.complete, requestDeserialize: decodeStrictly(CompletionRequest) },
  completeStream: { ...GatewayService.completeStream, requestDeserialize: decodeStrictly(CompletionRequest) },
  resume: { ...GatewayService.resume, requestDeserialize: decodeStrictly(ResumeRequest) },
  route: { ...GatewayService.route, requestDeserialize: decodeStrictly(RouteRequest) },
  listModels: { ...GatewayService.listModels, requestDeserialize: decodeStrictly(ListModelsRequest) },
  tokenize: { ...GatewayService.tokenize, requestDeserialize: decodeStrictly(TokenizeRequest) },
  detokenize: { ...GatewayService.detokenize, requestDeserialize: decodeStrictly(DetokenizeRequest) },
}
