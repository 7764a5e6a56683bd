import type { EngineClient, EngineStatus } from '../../proto/gen/edgeshift/v1/engine.js'
import { type MergedStatus, mergeStatus, type Offers } from './merge-status.js'
import type { ExitInfo } from './process.js'
import type { EngineSession } from './session.js'
import type { EngineState, EngineSupervisor } from './supervisor.js'
import type { Waiters } from './waiters.js'

/** The part of a supervisor that a fleet needs. */
export type Supervised = Pick<
  EngineSupervisor,
  'start' | 'stop' | 'setHangAfter' | 'state' | 'session' | 'client' | 'status' | 'lastExit' | 'refresh' | 'confirm'
>

/** The engines of a box as one: one process for all devices, or one for each. Owns their supervisors. */
export class EngineFleet {
  readonly #engines: readonly Supervised[]
  readonly #waiters: Waiters
  /** The merged status, and what it was made from. */
  #merged: { from: readonly (EngineStatus | boolean | undefined)[]; value: MergedStatus | undefined } | undefined

  /** `waiters`: those that every supervisor notifies of its changes. */
  constructor(engines: readonly Supervised[], waiters: Waiters) {
    this.#engines = engines
    this.#waiters = waiters
  }

  /** Starts the engines and keeps them running until `stop`. Returns at once. */
  start(): void {
    for (const engine of this.#engines) engine.start()
  }

  /** Ends sessions and processes; resolves when the processes are gone. */
  async stop(): Promise<void> {
    await Promise.all(this.#engines.map((engine) => engine.stop()))
  }

  /** How long an engine may stay silent, for health checks that begin from now on. */
  setHangAfter(hangAfterMs: number): void {
    for (const engine of this.#engines) engine.setHangAfter(hangAfterMs)
  }

  /** Where that engine is of which least is known: what nobody speaks of may be its. */
  get state(): EngineState {
    const states = new Set(this.#engines.map(({ state }) => state))
    return (['starting', 'crash_loop', 'stopped'] as const).find((state) => states.has(state)) ?? 'up'
  }

  /** Any engine takes requests. */
  get up(): boolean {
    return this.#engines.some(({ session }) => session !== undefined)
  }

  /** What those engines say that run; undefined while there is none. The same object until one of them says something new. */
  get status(): EngineStatus | undefined {
    return this.#merge()?.status
  }

  /** What each of them has of every variant; undefined while there is no status. The same object as long as that is. */
  get offers(): Offers | undefined {
    return this.#merge()?.offers
  }

  /** The session of an engine by its place, or undefined while it takes no requests. */
  sessionAt(engine: number): EngineSession | undefined {
    return this.#engines[engine]?.session
  }

  /** For calls beside the session about a variant, or about none in particular. */
  clientFor(variant: string): EngineClient | undefined {
    return this.#engineFor(variant)?.client ?? this.anyClient
  }

  /** For calls to every engine that knows a variant, who serves it soonest in front; to any one where none does. */
  clientsFor(variant: string): EngineClient[] {
    const knowing = (this.offers?.get(variant) ?? []).flatMap(({ engine }) => this.#engines[engine]?.client ?? [])
    return knowing.length === 0 && this.anyClient ? [this.anyClient] : knowing
  }

  /** For calls that any engine answers. */
  get anyClient(): EngineClient | undefined {
    return this.#engines.find(({ session }) => session)?.client
  }

  /** There are engines, and all work with the configuration of this digest. */
  hasTaken(digest: string): boolean {
    const told = this.#engines.flatMap(({ status }) => status ?? [])
    return told.length > 0 && told.every(({ configDigest }) => configDigest === digest)
  }

  /** Engines that there are. */
  get size(): number {
    return this.#engines.length
  }

  /** How an engine last ended. */
  get lastExit(): ExitInfo | undefined {
    return this.#engines.find(({ lastExit }) => lastExit)?.lastExit
  }

  /** Asks the engines for fresh figures; keeps the last ones where one does not answer. */
  async refresh(): Promise<void> {
    await Promise.all(this.#engines.map((engine) => engine.refresh()))
  }

  /** Resolves when it is known whether the engine of this session outlived what it just reported, or soon after `signal`. */
  async confirm(session: object, signal: AbortSignal): Promise<void> {
    await this.#engines.find((engine) => engine.session === session)?.confirm(signal)
  }

  /** Waiters.waitFor: `probe` is tried after every change of an engine or of what it says. */
  waitFor<T>(probe: () => T | undefined, timeoutMs: number, signal?: AbortSignal): Promise<T | undefined> {
    return this.#waiters.waitFor(probe, timeoutMs, signal)
  }

  /** Requests that wait in `waitFor`. */
  get waiting(): number {
    return this.#waiters.size
  }

  #engineFor(variant: string): Supervised | undefined {
    const [best] = this.offers?.get(variant) ?? []
    return best && this.#engines[best.engine]
  }

  #merge(): MergedStatus | undefined {
    const statuses = this.#engines.map(({ status }) => status)
    const awaited = this.#engines.some(({ state }) => state === 'starting')
    const from = [...statuses, awaited]
    const known = this.#merged
    if (known && from.every((one, i) => one === known.from[i])) return known.value
    const value = mergeStatus(statuses, awaited)
    this.#merged = { from, value }
    return value
  }
}
