/**
 * grpc.health.v1.Health over the box's own report, read on demand. The definition is grpc-health-check's; its
 * implementation is not used because it keeps an entry for every name a client ever watched.
 */
import type {
  Metadata,
  ServerWritableStream,
  UntypedServiceImplementation,
  sendUnaryData,
  ServerUnaryCall,
} from '@grpc/grpc-js'
import { status as grpcStatus } from '@grpc/grpc-js'
import type { HealthReport, RungState } from '../../services.js'
import { callToken } from './metadata.js'

/** States of the health protocol, by name as grpc-health-check's definition encodes them. */
export type ServingStatus = 'SERVING' | 'NOT_SERVING' | 'SERVICE_UNKNOWN'

interface HealthRequest {
  service: string
}

interface HealthResponse {
  status: ServingStatus
}

/** Names that stand for the whole box: the empty one is the protocol's, the other our service's. */
const OVERALL = ['', 'edgeshift.v1.Gateway']

/** State of `name`: overall, a model's id, or one of its rungs ("id:rung"). Pure. */
export function servingStatus(report: HealthReport, name: string): ServingStatus {
  const open = report.status === 'ok' || report.status === 'degraded'
  if (OVERALL.includes(name)) return open ? 'SERVING' : 'NOT_SERVING'
  const rungs = rungStates(report, name)
  if (!rungs) return 'SERVICE_UNKNOWN'
  return report.status !== 'draining' && rungs.some((state) => state === 'ready' || state === 'on_demand')
    ? 'SERVING'
    : 'NOT_SERVING'
}

function rungStates(report: HealthReport, name: string): (RungState | undefined)[] | undefined {
  if (Object.hasOwn(report.models, name)) return Object.values(report.models[name] ?? {})
  const colon = name.lastIndexOf(':')
  const model = name.slice(0, Math.max(colon, 0))
  const rungs = Object.hasOwn(report.models, model) ? report.models[model] : undefined
  const rung = name.slice(colon + 1)
  return rungs && Object.hasOwn(rungs, rung) ? [rungs[rung]] : undefined
}

/** The health service. Owns one timer, running only while somebody watches. */
export class HealthService {
  private readonly watchers = new Map<ServerWritableStream<HealthRequest, HealthResponse>, ServingStatus>()
  private timer: NodeJS.Timeout | undefined

  /** `health`: what the caller with a token may see; `intervalMs`: how stale a watcher's view may get. */
  constructor(
    private readonly health: (token: string | undefined) => HealthReport,
    private readonly intervalMs: number,
  ) {}

  readonly calls: UntypedServiceImplementation = {
    check: (call: ServerUnaryCall<HealthRequest, HealthResponse>, callback: sendUnaryData<HealthResponse>): void => {
      const status = servingStatus(this.seenBy(call), call.request.service)
      if (status !== 'SERVICE_UNKNOWN') callback(null, { status })
      else callback({ code: grpcStatus.NOT_FOUND, details: 'no such service or model' })
    },
    watch: (call: ServerWritableStream<HealthRequest, HealthResponse>): void => this.watch(call),
    list: (
      call: { metadata: Metadata },
      callback: sendUnaryData<{ statuses: Record<string, HealthResponse> }>,
    ): void => {
      const report = this.seenBy(call)
      const names = [...OVERALL, ...Object.keys(report.models)]
      callback(null, {
        statuses: Object.fromEntries(names.map((name) => [name, { status: servingStatus(report, name) }])),
      })
    },
  }

  /** Tells watchers what changed; also called by the timer. */
  refresh(): void {
    for (const [call, told] of this.watchers) {
      const status = servingStatus(this.seenBy(call), call.request.service)
      if (status === told) continue
      this.watchers.set(call, status)
      call.write({ status })
    }
  }

  /** Ends every watch, so that a shutting-down server does not wait for them. */
  close(): void {
    for (const call of this.watchers.keys()) call.end()
    this.watchers.clear()
    this.stopIfIdle()
  }

  private watch(call: ServerWritableStream<HealthRequest, HealthResponse>): void {
    const status = servingStatus(this.seenBy(call), call.request.service)
    this.watchers.set(call, status)
    call.write({ status })
    call.on('cancelled', () => {
      this.watchers.delete(call)
      this.stopIfIdle()
    })
    this.timer ??= setInterval(() => this.refresh(), this.intervalMs).unref()
  }

  private seenBy({ metadata }: { metadata: Metadata }): HealthReport {
    return this.health(callToken(metadata))
  }

  private stopIfIdle(): void {
    if (this.watchers.size > 0) return
    clearInterval(this.timer)
    this.timer = undefined
  }
}
