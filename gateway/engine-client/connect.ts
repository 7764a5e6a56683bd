import { credentials, type ChannelOptions } from '@grpc/grpc-js'
import { MAX_REQUEST_BYTES } from '../../engine/config/index.js'
import { EngineClient, type DescribeResponse } from '../../proto/gen/edgeshift/v1/engine.js'

/** Log probabilities of a whole context fit; assets come in chunks. */
const MAX_EVENT_BYTES = 256 * 1024 * 1024

const CHANNEL_OPTIONS: ChannelOptions = {
  'grpc.max_receive_message_length': MAX_EVENT_BYTES,
  'grpc.max_send_message_length': MAX_REQUEST_BYTES,
  'grpc.initial_reconnect_backoff_ms': 20,
  'grpc.max_reconnect_backoff_ms': 100,
  'grpc.enable_retries': 0,
  'grpc.use_local_subchannel_pool': 1,
  'grpc.service_config_disable_resolution': 1,
}

/** Files of one model by name, as the engine has them. */
export type ModelAssets = Map<string, Buffer>

/** A client on the engine's unix socket. The caller closes it. */
export function openClient(socketPath: string): EngineClient {
  return new EngineClient(`unix:${socketPath}`, credentials.createInsecure(), CHANNEL_OPTIONS)
}

/** Resolves when the engine accepts connections; rejects after `timeoutMs` or when the client is closed. */
export function waitForReady(client: EngineClient, timeoutMs: number): Promise<void> {
  return within(timeoutMs, (resolve, reject) => {
    client.waitForReady(Infinity, (error) => (error ? reject(error) : resolve()))
    return undefined
  })
}

/** Asks the engine for its state; rejects after `timeoutMs`. */
export function describe(client: EngineClient, timeoutMs: number): Promise<DescribeResponse> {
  return within(timeoutMs, (resolve, reject) =>
    client.describe({}, (error, response) => (error ? reject(error) : resolve(response))),
  )
}

/**
 * A promise that is rejected after `timeoutMs` by the monotonic clock, its call cancelled. gRPC's own deadlines are points of the
 * wall clock: where that jumps, a call would end at once, or never.
 */
export function within<T>(
  timeoutMs: number,
  start: (resolve: (value: T) => void, reject: (error: unknown) => void) => { cancel(): void } | undefined,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const settle =
      <V>(end: (value: V) => void) =>
      (value: V): void => {
        clearTimeout(timer)
        end(value)
      }
    const call = start(settle(resolve), settle(reject))
    const timer = setTimeout(() => {
      reject(new Error(`no answer for ${timeoutMs} ms`))
      call?.cancel()
    }, timeoutMs)
  })
}

/**
 * Fetches the text layer's files of one model. Rejects with NOT_FOUND when the engine does not have the model, with ABORTED
 * when it works with another configuration than that of the digest.
 */
export function fetchAssets(
  client: EngineClient,
  model: string,
  configDigest: string,
  timeoutMs: number,
): Promise<ModelAssets> {
  return within(timeoutMs, (resolve, reject) => {
    const chunks = new Map<string, Buffer[]>()
    const call = client.getModelAssets({ model, configDigest })
    call.on('data', ({ name, data }: { name: string; data: Buffer }) => {
      const parts = chunks.get(name)
      if (parts) parts.push(data)
      else chunks.set(name, [data])
    })
    call.on('error', reject)
    call.on('end', () => resolve(new Map([...chunks].map(([name, parts]) => [name, Buffer.concat(parts)]))))
    return call
  })
}
