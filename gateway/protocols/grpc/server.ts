/** The public gRPC server: service, health, reflection, limits. */
import { Server, ServerCredentials } from '@grpc/grpc-js'
import { service as healthDefinition } from 'grpc-health-check'
import type { Services } from '../../services.js'
import { servedDefinition } from './definition.js'
import { HealthService } from './health.js'
import { reflectionService } from './reflection.js'
import { gatewayCalls } from './service.js'

/** Times and bounds of the server; every one has a default. */
export interface GrpcSettings {
  /** Calls one connection may have open. */
  maxConcurrentStreams: number
  /** Idle time after which a connection is probed, and how long the probe may take. */
  keepaliveMs: number
  keepaliveTimeoutMs: number
  /** Time a streaming client may leave its flow-control window full before its request is cancelled. */
  stallMs: number
  /** How stale a health watcher's view may get. */
  healthIntervalMs: number
  credentials: ServerCredentials
}

const DEFAULTS: GrpcSettings = {
  maxConcurrentStreams: 256,
  keepaliveMs: 30_000,
  keepaliveTimeoutMs: 10_000,
  stallMs: 60_000,
  healthIntervalMs: 1000,
  credentials: ServerCredentials.createInsecure(),
}

/** A bound server; `close` frees everything it owns. */
export class GrpcServer {
  private constructor(
    private readonly server: Server,
    private readonly health: HealthService,
    /** The bound port; 0 for a unix socket. */
    readonly port: number,
  ) {}

  /** Binds `address` (host:port or unix:path; port 0 picks one). Rejects when it cannot be bound. */
  static async listen(services: Services, address: string, settings: Partial<GrpcSettings> = {}): Promise<GrpcServer> {
    const { credentials, healthIntervalMs, stallMs, ...bounds } = { ...DEFAULTS, ...settings }
    const server = new Server({
      'grpc.max_receive_message_length': services.limits.maxBodyBytes,
      'grpc.max_concurrent_streams': bounds.maxConcurrentStreams,
      'grpc.keepalive_time_ms': bounds.keepaliveMs,
      'grpc.keepalive_timeout_ms': bounds.keepaliveTimeoutMs,
      'grpc.enable_channelz': 0,
    })
    const health = new HealthService((token) => services.access.health(token), healthIntervalMs)
    server.addService(servedDefinition, gatewayCalls(services, stallMs))
    server.addService(healthDefinition, health.calls)
    reflectionService().addToServer(server)
    return new GrpcServer(server, health, await bind(server, address, credentials))
  }

  /** Takes no new calls, lets running ones end for up to `graceMs`, then cuts the rest. */
  async close(graceMs = 0): Promise<void> {
    this.health.refresh()
    this.health.close()
    const force = setTimeout(() => this.server.forceShutdown(), graceMs)
    await new Promise<void>((resolve) => this.server.tryShutdown(() => resolve()))
    clearTimeout(force)
  }
}

function bind(server: Server, address: string, credentials: ServerCredentials): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, credentials, (error, port) => (error ? reject(error) : resolve(port)))
  })
}
