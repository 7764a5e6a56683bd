import { status as grpcStatus, type ServerWritableStream } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import type {
  EngineServer,
  GetModelAssetsRequest,
  ModelAsset as AssetChunk,
} from '../../proto/gen/edgeshift/v1/engine.js'
import type { Engine } from '../engine.js'
import { type ModelAsset, ModelFileError } from '../registry/index.js'
import { operate } from './operator.js'
import { Session } from './session.js'
import { engineStatus } from './status.js'

/** The assets of a model; undefined for a model that is not served. */
export type AssetSource = (model: string) => Promise<readonly ModelAsset[] | undefined>

const CHUNK_BYTES = 2 ** 20
const STATUS_INTERVAL_MS = 250

/** The engine's gRPC service over its core, without a transport. */
export class EngineService {
  private readonly sessions = new Set<Session>()
  private readonly removeListener: () => void
  private statusTimer: NodeJS.Timeout | undefined

  constructor(
    private readonly engine: Engine,
    private readonly assets: AssetSource,
    private readonly log: Logger,
  ) {
    this.removeListener = engine.onChange(() => this.scheduleStatus())
  }

  /** The handlers to register. */
  readonly handlers: EngineServer = {
    session: (call) => {
      const session: Session = new Session(call, this.engine, this.log, () => this.sessions.delete(session))
      this.sessions.add(session)
      session.sendStatus(engineStatus(this.engine))
    },
    describe: (_call, reply) => {
      const status = engineStatus(this.engine)
      reply(null, { status, devices: status.devices })
    },
    load: (call, reply) => operate(this.engine, call, reply, ({ variant }, loader) => loader.load(variant)),
    unload: (call, reply) => operate(this.engine, call, reply, ({ variant }, loader) => loader.unload(variant)),
    pin: (call, reply) =>
      operate(this.engine, call, reply, ({ variant, pinned }, loader) => loader.pin(variant, pinned)),
    getModelAssets: (call) => {
      this.sendAssets(call).catch((error: unknown) => {
        this.log.error({ err: error, model: call.request.model }, 'assets failed')
        // Broken text files are the model's fault: its clients are told, the engine goes on.
        const known = error instanceof ModelFileError
        const code = known ? grpcStatus.FAILED_PRECONDITION : grpcStatus.INTERNAL
        call.emit('error', { code, details: known ? error.message : 'the assets could not be read' })
      })
    },
  }

  /** Writes what is pending and ends every session. */
  close(): void {
    this.removeListener()
    clearTimeout(this.statusTimer)
    for (const session of this.sessions) {
      session.flush()
      session.close()
    }
  }

  /** At most one status each interval, the last one after the last change. */
  private scheduleStatus(): void {
    this.statusTimer ??= setTimeout(() => {
      this.statusTimer = undefined
      const status = engineStatus(this.engine)
      for (const session of this.sessions) session.sendStatus(status)
    }, STATUS_INTERVAL_MS)
  }

  private async sendAssets(call: ServerWritableStream<GetModelAssetsRequest, AssetChunk>): Promise<void> {
    const { model, configDigest } = call.request
    if (configDigest !== '' && configDigest !== this.engine.configDigest) {
      call.emit('error', { code: grpcStatus.ABORTED, details: 'another edit of the configuration is in use' })
      return
    }
    const assets = await this.assets(model)
    if (!assets) {
      call.emit('error', { code: grpcStatus.NOT_FOUND, details: `unknown model ${model.slice(0, 200)}` })
      return
    }
    for (const { name, data } of assets) {
      for (let at = 0; at === 0 || at < data.length; at += CHUNK_BYTES) {
        if (call.cancelled) return
        if (!call.write({ name, data: Buffer.from(data.subarray(at, at + CHUNK_BYTES)) })) await drained(call)
      }
    }
    call.end()
  }
}

/** Resolves when the reader has caught up or is gone. */
function drained(call: ServerWritableStream<GetModelAssetsRequest, AssetChunk>): Promise<void> {
  return new Promise((resolve) => {
    for (const event of ['drain', 'cancelled', 'close']) call.once(event, resolve)
  })
}
