import { credentials, Metadata, type ChannelOptions } from '@grpc/grpc-js'
import { EngineClient, type DescribeResponse } from '../../proto/gen/edgeshift/v1/engine.js'

/** Prompts and log probabilities of a whole context fit; assets come in chunks. */
const MAX_MESSAGE_BYTES = 256 * 1024 * 1024

const CHANNEL_OPTIONS: ChannelOptions = {
  'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
  'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
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
  return new Promise((resolve, reject) => {
    client.waitForReady(Date.now() + timeoutMs, (error) => (error ? reject(error) : resolve()))
  })
}

/** Asks the engine for its state; rejects after `timeoutMs`. */
export function describe(client: EngineClient, timeoutMs: number): Promise<DescribeResponse> {
  return new Promise((resolve, reject) => {
    client.describe({}, new Metadata(), { deadline: Date.now() + timeoutMs }, (error, response) =>
      error ? reject(error) : resolve(response),
    )
  })
}

/** Fetches the text layer's files of one model; rejects when the engine does not have the model. */
export function fetchAssets(client: EngineClient, model: string, timeoutMs: number): Promise<ModelAssets> {
  return new Promise((resolve, reject) => {
    const chunks = new Map<string, Buffer[]>()
    const call = client.getModelAssets({ model }, { deadline: Date.now() + timeoutMs })
    call.on('data', ({ name, data }: { name: string; data: Buffer }) => {
      const parts = chunks.get(name)
      if (parts) parts.push(data)
      else chunks.set(name, [data])
    })
    call.on('error', reject)
    call.on('end', () => resolve(new Map([...chunks].map(([name, parts]) => [name, Buffer.concat(parts)]))))
  })
}
