/** gRPC clients for tests: the generated one, health, raw bytes, and one built from reflection. Work on any stack. */
import { createRequire } from 'node:module'
import { join, dirname } from 'node:path'
import { BinaryWriter } from '@bufbuild/protobuf/wire'
import {
  Client,
  type ClientReadableStream,
  credentials,
  Metadata,
  makeGenericClientConstructor,
  type ServiceClientConstructor,
  type ServiceError,
  status as Status,
  type StatusObject,
} from '@grpc/grpc-js'
import {
  type AnyDefinition,
  loadFileDescriptorSetFromBuffer,
  loadSync,
  type PackageDefinition,
  type ServiceDefinition,
} from '@grpc/proto-loader'
import { service as healthDefinition } from 'grpc-health-check'
import {
  type ChatRequest,
  GatewayClient,
  type GenerateEvent,
  type GenerateResponse,
} from '../../proto/gen/edgeshift/v1/gateway.js'

const SERVICE = '/edgeshift.v1.Gateway'
const HealthClient = makeGenericClientConstructor(healthDefinition, 'grpc.health.v1.Health')
const require = createRequire(import.meta.url)

type Done<T> = (error: ServiceError | null, value: T) => void

const same = (value: Buffer): Buffer => value

/** One connection with the generated client and the standard health client. */
export class GrpcPeer {
  readonly client: GatewayClient
  private readonly healthClient: InstanceType<ServiceClientConstructor>

  constructor(address: string) {
    this.client = new GatewayClient(address, credentials.createInsecure())
    this.healthClient = new HealthClient(address, credentials.createInsecure())
  }

  close(): void {
    this.client.close()
    this.healthClient.close()
  }

  /** Resolves to a unary call's answer; rejects with its ServiceError. */
  unary<T>(start: (done: Done<T>) => void): Promise<T> {
    return new Promise((resolve, reject) => start((error, value) => (error ? reject(error) : resolve(value))))
  }

  /** A unary chat with its initial metadata and trailers. */
  async chat(request: ChatRequest): Promise<{ response: GenerateResponse; metadata: Metadata; trailers: Metadata }> {
    let metadata = new Metadata()
    let trailers = new Metadata()
    const response = await new Promise<GenerateResponse>((resolve, reject) => {
      let value: GenerateResponse | undefined
      const call = this.client.chat(request, (error, answer) => {
        if (error) reject(error)
        else value = answer
      })
      call.on('metadata', (received) => (metadata = received))
      call.on('status', (ended) => {
        trailers = ended.metadata
        if (value) resolve(value)
      })
    })
    return { response, metadata, trailers }
  }

  /** Sends bytes as the request of a call; resolves to its status. */
  raw(method: string, bytes: Buffer): Promise<StatusObject> {
    return new Promise((resolve) => {
      const call = (this.client as Client).makeUnaryRequest(`${SERVICE}/${method}`, same, same, bytes, () => undefined)
      call.on('status', resolve)
    })
  }

  /** The health of a service or model; rejects with NOT_FOUND for an unknown one. */
  async health(service: string): Promise<string> {
    const { status } = await this.unary<{ status: string }>((done) => this.healthClient['check']?.({ service }, done))
    return status
  }

  /** Follows the health of a service or model until cancelled. */
  watchHealth(service: string, onChange: (status: string) => void): { cancel(): void } {
    const call: ClientReadableStream<{ status: string }> = this.healthClient['watch']?.({ service })
    call.on('data', ({ status }: { status: string }) => onChange(status))
    call.on('error', () => undefined)
    return call
  }
}

/** A finished streaming call: its events, the text of every choice, its final status. */
export interface Collected {
  events: GenerateEvent[]
  texts: string[]
  status: StatusObject
}

/** Reads a stream to its end, whatever end that is. */
export function collect(call: ClientReadableStream<GenerateEvent>): Promise<Collected> {
  const events: GenerateEvent[] = []
  const texts: string[] = []
  call.on('data', (event: GenerateEvent) => {
    events.push(event)
    if (event.kind?.$case !== 'delta') return
    const { index, text } = event.kind.delta
    texts[index] = (texts[index] ?? '') + text
  })
  call.on('error', () => undefined)
  return new Promise((resolve) => call.on('status', (status) => resolve({ events, texts, status })))
}

/** One streamed chat as a scenario: the same shape as the other protocols' so that texts can be compared. */
export async function chatOverGrpc(
  peer: GrpcPeer,
  model: string,
  content: string,
  options: Partial<NonNullable<ChatRequest['options']>> = {},
): Promise<{ text: string; variant: string; completionTokens: number }> {
  const { events, texts, status } = await collect(
    peer.client.chatStream({
      model,
      messages: [{ role: 'user', content, name: '' }],
      options: { logitBias: new Map(), stop: [], stopTokenIds: [], ...options },
    }),
  )
  if (status.code !== Status.OK) throw new Error(`${status.code}: ${status.details}`)
  const started = events.find((event) => event.kind?.$case === 'started')?.kind
  const usage = events.at(-1)?.kind
  return {
    text: texts[0] ?? '',
    variant: started?.$case === 'started' ? started.started.variant : '',
    completionTokens: usage?.$case === 'usage' ? usage.usage.completionTokens : 0,
  }
}

/** A client of the Gateway service that knows only what reflection told it. */
export interface ReflectedClient {
  call(method: string, request: object): Promise<object>
  close(): void
}

interface ReflectionResponse {
  listServicesResponse?: { service: { name: string }[] }
  fileDescriptorResponse?: { fileDescriptorProto: Buffer[] }
}

/** Asks the server what it serves and builds a client from the descriptors it sends. */
export async function reflectedClient(address: string): Promise<{ services: string[]; client: ReflectedClient }> {
  const listed = await reflect(address, { listServices: '*' })
  const files = await reflect(address, { fileContainingSymbol: 'edgeshift.v1.Gateway' })
  const descriptors = new BinaryWriter()
  // google.protobuf.FileDescriptorSet: field 1, repeated FileDescriptorProto.
  for (const file of files.fileDescriptorResponse?.fileDescriptorProto ?? []) descriptors.tag(1, 2).bytes(file)
  const definition = loadFileDescriptorSetFromBuffer(Buffer.from(descriptors.finish()))
  const Gateway = clientOf(definition, 'edgeshift.v1.Gateway')
  const client = new Gateway(address, credentials.createInsecure())
  return {
    services: (listed.listServicesResponse?.service ?? []).map(({ name }) => name),
    client: {
      call: (method, request) =>
        new Promise((resolve, reject) => {
          client[method]?.(request, (error: ServiceError | null, value: object) =>
            error ? reject(error) : resolve(value),
          )
        }),
      close: () => client.close(),
    },
  }
}

function clientOf(definition: PackageDefinition, name: string): ServiceClientConstructor {
  const service = definition[name]
  if (!service || !isService(service)) throw new Error(`no service ${name}`)
  return makeGenericClientConstructor(service, name)
}

function isService(definition: AnyDefinition): definition is ServiceDefinition {
  return !('format' in definition)
}

function reflect(address: string, request: object): Promise<ReflectionResponse> {
  const folder = dirname(require.resolve('@grpc/reflection'))
  const definition = loadSync(join(folder, '../proto/grpc/reflection/v1/reflection.proto'), { oneofs: true })
  const Reflection = clientOf(definition, 'grpc.reflection.v1.ServerReflection')
  const client = new Reflection(address, credentials.createInsecure())
  const call = client['ServerReflectionInfo']?.()
  return new Promise<ReflectionResponse>((resolve, reject) => {
    call.on('data', resolve)
    call.on('error', reject)
    call.write(request)
    call.end()
  }).finally(() => client.close())
}
