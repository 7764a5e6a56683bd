/** What an operator asks of the engine beside its requests. */
import { type ClientUnaryCall, type ServiceError, status as grpcStatus } from '@grpc/grpc-js'
import {
  type DeviceStatus,
  type EngineClient,
  type VariantStatus,
  VariantState,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { type ErrorCode, GatewayError } from '../errors.js'
import { within } from './connect.js'
import type { DeviceState, Operator, Residency, VariantResidency } from '../services.js'
import type { EngineFleet } from './fleet.js'
import type { Pins } from './pins.js'

/** A load reads a whole checkpoint; an unload or a pin answers at once. */
const TIMEOUT_MS = 600_000

const CODES: Partial<Record<grpcStatus, ErrorCode>> = {
  [grpcStatus.NOT_FOUND]: 'model_not_found',
  [grpcStatus.FAILED_PRECONDITION]: 'conflict',
  [grpcStatus.RESOURCE_EXHAUSTED]: 'insufficient_memory',
}

type Engines = Pick<EngineFleet, 'clientFor' | 'clientsFor' | 'status' | 'refresh' | 'size'>
type Reply = (error: ServiceError | null, status: VariantStatus) => void
type Asked = (client: EngineClient, reply: Reply) => ClientUnaryCall

/** The operator's side of the engines. */
export class EngineOperator implements Operator {
  constructor(
    private readonly engines: Engines,
    private readonly pins: Pick<Pins, 'tell'>,
  ) {}

  async residency(): Promise<Residency> {
    await this.engines.refresh()
    const { status } = this.engines
    if (!status) throw noEngine()
    return { variants: status.variants.map(toResidency), devices: status.devices.map(toDevice) }
  }

  load(variant: string): Promise<VariantResidency> {
    return this.#ask(variant, (client, reply) => client.load({ variant }, reply))
  }

  /** From every engine that has it. */
  async unload(variant: string): Promise<VariantResidency> {
    const isResident = (): boolean =>
      this.engines.status?.variants.some(({ name, state }) => name === variant && state === VariantState.READY) === true
    let answer = await this.#unloadOne(variant)
    for (let others = this.engines.size - 1; others > 0 && isResident(); others--) {
      // oxlint-disable-next-line no-await-in-loop -- which engine is next is known when the last one has answered
      answer = await this.#unloadOne(variant)
    }
    return answer
  }

  /** At every engine that has it, or may have it later; also when it is started anew. */
  async pin(variant: string, pinned: boolean): Promise<VariantResidency> {
    const clients = this.engines.clientsFor(variant)
    const answer = await this.#askAll(clients, (client, reply) => client.pin({ variant, pinned }, reply))
    this.pins.tell(variant, pinned)
    return answer
  }

  #unloadOne(variant: string): Promise<VariantResidency> {
    return this.#ask(variant, (client, reply) => client.unload({ variant }, reply))
  }

  async #ask(variant: string, ask: Asked): Promise<VariantResidency> {
    const client = this.engines.clientFor(variant)
    return this.#askAll(client ? [client] : [], ask)
  }

  /** The answer of the first of them. */
  async #askAll(clients: readonly EngineClient[], ask: Asked): Promise<VariantResidency> {
    const [answer] = await Promise.all(
      clients.map((client) =>
        within<VariantStatus>(TIMEOUT_MS, (resolve, reject) =>
          ask(client, (error, value) => (error ? reject(toError(error)) : resolve(value))),
        ),
      ),
    )
    if (!answer) throw noEngine()
    await this.engines.refresh()
    return toResidency(answer)
  }
}

function noEngine(): GatewayError {
  return new GatewayError('engine_unavailable', 'the engine is being started', { retryAfterMs: 2000 })
}

function toError({ code, details }: ServiceError): GatewayError {
  return new GatewayError(CODES[code] ?? 'engine_unavailable', details)
}

const STATES: Partial<Record<VariantState, VariantResidency['state']>> = {
  [VariantState.LOADING]: 'loading',
  [VariantState.READY]: 'ready',
  [VariantState.FAILED]: 'failed',
}

function toResidency(variant: VariantStatus): VariantResidency {
  const { name, model, device, weightBytes, neededBytes, pinned, loads, running, waiting, error } = variant
  const { origin: loadedFrom, loadMs } = variant
  const state = STATES[variant.state] ?? 'unloaded'
  const facts = {
    name,
    model,
    state,
    device,
    weightBytes,
    neededBytes,
    pinned,
    loads,
    loadedFrom,
    loadMs,
    running,
    waiting,
  }
  return error === '' ? facts : { ...facts, error }
}

function toDevice({ id, kind, budgetBytes, driftBytes, ledger }: DeviceStatus): DeviceState {
  const usedBytes = ledger.reduce((sum, { bytes, host }) => (host ? sum : sum + bytes), 0)
  return { id, kind, budgetBytes, usedBytes, driftBytes, ledger }
}
