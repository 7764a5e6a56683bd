import type { Logger } from 'pino'
import { FinishReason, VariantState, type SequenceError, type Submit } from '../proto/gen/edgeshift/v1/engine.js'
import type { EngineDevice, ResidentVariant } from './device.js'
import type { GrammarDesk } from './grammar/desk.js'
import type { NativeModel, Precision } from './native.js'
import type { MeasuredQuality } from './registry/index.js'
import { checkSubmit, chooseShed } from './scheduler/admission.js'
import { RateMeter, retryAfterMs } from './scheduler/rate.js'
import { Lobby } from './residency/lobby.js'
import type { PackedStore } from './residency/packed-store.js'
import { endOf, Sequence, type SequenceOwner } from './scheduler/sequence.js'

/** A rung as configured, and how far it is. */
export interface Variant {
  /** "model:rung". */
  readonly name: string
  readonly model: string
  readonly precision: Precision
  /** Id of the device it is on, or was last; empty when on none yet. */
  device: string
  readonly maxModelLen: number
  readonly vocabSize: number
  state: VariantState
  /** Why FAILED. */
  error: string
  weightBytes: number
  /** NativeModel.roundingError of its last load; 0 before the first. */
  roundingError: number
  /** Of the rung, where it has been measured. */
  readonly quality?: MeasuredQuality | undefined
  /** Device bytes of weights and workspace: estimated until the first load, then as taken. */
  neededBytes: number
  /** Never unloaded to make room. */
  pinned: boolean
  /** Times it was loaded. */
  loads: number
  /** Where its last load took the matrices from (NativeModel.origin), and how long it took, milliseconds. */
  origin: NativeModel['origin'] | ''
  loadMs: number
  /** Set while READY. */
  resident?: ResidentVariant | undefined
}

/** What a request for a variant that is not resident would meet. */
export interface VariantOutlook {
  /** It would be loaded at once. */
  loadable: boolean
  /** It would be loaded when others have come to rest. */
  queueable: boolean
  /** Variants that it would evict, or that have to come to rest. */
  room: string[]
  /** Why neither. */
  reason: string
  /** When to try again after a failure; 0 = unknown. */
  retryAfterMs: number
}

/** Brings variants onto devices when they are wanted. */
export interface VariantLoader {
  /** Sequences came to the lobby or left it, or a variant came to rest: what is to be done is decided soon. */
  review(): void
  /** Why nobody may wait for a variant that is not resident; undefined when a load can be waited for. */
  refusal(variant: Variant): SequenceError | undefined
  outlook(variant: Variant): VariantOutlook
  /** Whether new sequences of a resident variant have to wait, so that it comes to rest. */
  isDraining(variant: Variant): boolean
  /** A request for the variant came or ended. */
  touch(variant: Variant): void
  /** Operators' requests; they reject with a ResidencyError. */
  load(name: string): Promise<void>
  unload(name: string): Promise<void>
  pin(name: string, pinned: boolean): Promise<void>
}

/** Bounds and dependencies of an engine. */
export interface EngineOptions {
  version: string
  /** Sequences that may wait, all variants together; may be changed. */
  maxWaiting: number
  /** Of these, of one tenant and one priority; may be changed. */
  maxWaitingPerTenant?: number | undefined
  /** Milliseconds, monotonic. */
  clock: () => number
  log: Logger
}

const SWEEP_MS = 100

/** The engine without its transport: variants on devices, and what is asked of them. */
export class Engine {
  readonly variants = new Map<string, Variant>()
  readonly devices: EngineDevice[] = []
  /** Absent where every variant is resident from the start. */
  loader: VariantLoader | undefined
  /** Repacked files of its variants; absent where none are kept. */
  packed: PackedStore | undefined
  /** Keeps the grammars of requests; absent where none are served. */
  grammars: GrammarDesk | undefined
  readonly lobby: Lobby
  /** Why the last edit of the configuration was refused; empty when it was not. */
  configError = ''
  /** Edits that wait for the next start, one line each. */
  configWaiting: readonly string[] = []
  /** The digest of the configuration in use. */
  configDigest = ''
  private arrivals = 0
  private draining = false
  private sweeper: NodeJS.Timeout | undefined
  private readonly completions: RateMeter
  private readonly listeners = new Set<() => void>()

  constructor(readonly options: EngineOptions) {
    this.completions = new RateMeter(options.clock())
    this.lobby = new Lobby(this.sequenceFinished)
  }

  /** Calls `listener` synchronously whenever the status may have changed; returns what removes it. */
  onChange(listener: () => void): () => void {
    this.listeners.add(listener)
    return () => this.listeners.delete(listener)
  }

  /** To be called after a variant's state was set. */
  changed(): void {
    for (const listener of this.listeners) listener()
  }

  /** Counts a sequence that ended, for the measured rate; devices call it. */
  readonly sequenceFinished = (sequence: Sequence, now: number): void => {
    if (sequence.firstScheduledAt !== undefined) this.completions.record(now)
    this.grammars?.release(sequence)
    const variant = this.variants.get(sequence.submit.variant)
    if (variant) this.loader?.touch(variant)
    this.loader?.review()
    this.changed()
  }

  get running(): number {
    return this.devices.reduce((sum, device) => sum + device.running, 0)
  }

  get waiting(): number {
    return this.devices.reduce((sum, device) => sum + device.waiting, this.lobby.size)
  }

  /** Takes a request; a refused one is answered through its owner and undefined is returned. */
  submit(submit: Submit, owner: SequenceOwner): Sequence | undefined {
    const now = this.options.clock()
    const variant = this.variants.get(submit.variant)
    const error = this.refusal(variant, submit) ?? tooLate(variant, submit, now) ?? this.makeRoom(submit, now)
    if (error) {
      owner.deliver(endOf(submit.sequenceId, FinishReason.REJECTED, error))
      return undefined
    }
    if (!variant) return undefined
    const sequence = new Sequence(submit, owner, this.arrivals++, now, variant.maxModelLen)
    if (nothingToDo(sequence)) {
      owner.deliver(endOf(submit.sequenceId, FinishReason.LENGTH))
      return undefined
    }
    if (submit.grammar) void this.grammars?.open(sequence, variant.model, this)
    this.place(sequence, variant)
    this.sweeper ??= setInterval(() => this.sweep(), SWEEP_MS)
    this.changed()
    return sequence
  }

  /** Lets a sequence run or, where its variant is not resident, wait for that. */
  place(sequence: Sequence, variant: Variant): void {
    const { resident } = variant
    this.loader?.touch(variant)
    if (resident && !this.loader?.isDraining(variant)) {
      resident.scheduler.add(sequence, this.options.clock())
      resident.device.loop.wake()
    } else {
      this.lobby.add(sequence)
      this.loader?.review()
    }
  }

  /** Ends a sequence before the next step; no effect on a finished one. */
  cancel(sequence: Sequence): void {
    sequence.holder?.end(sequence, FinishReason.CANCELLED, this.options.clock())
    this.wake()
  }

  /** A paused sequence keeps its blocks while nobody needs them and is ended after a minute. */
  setPaused(sequence: Sequence, paused: boolean): void {
    if (paused) sequence.pausedSince ??= this.options.clock()
    else sequence.pausedSince = undefined
    this.wake()
  }

  /** Looks for work again, e.g. because a session's reader has caught up. */
  wake(): void {
    for (const device of this.devices) device.loop.wake()
  }

  /** Refuses what comes from now on. */
  drain(): void {
    this.draining = true
  }

  /** Ends what is left and waits for the steps under way. */
  async stop(reason: FinishReason, error?: SequenceError): Promise<void> {
    this.drain()
    const now = this.options.clock()
    for (const sequence of this.lobby) this.lobby.end(sequence, reason, now, error)
    for (const device of this.devices)
      for (const { scheduler } of device.residents) scheduler.endAll(reason, now, error)
    clearInterval(this.sweeper)
    this.grammars?.close()
    await Promise.all(this.devices.map((device) => device.loop.stop()))
  }

  private refusal(variant: Variant | undefined, submit: Submit): SequenceError | undefined {
    if (this.draining) return refuse('shutting_down', 'the engine is stopping')
    if (!variant) return refuse('invalid_request', `unknown variant ${JSON.stringify(submit.variant.slice(0, 200))}`)
    if (!variant.resident && !this.loader) return refuse('engine_unavailable', `${variant.name} is not loaded`)
    if (submit.grammar && !this.grammars) return refuse('invalid_request', 'this engine serves no grammars')
    return (variant.resident ? undefined : this.loader?.refusal(variant)) ?? checkSubmit(submit, variant)
  }

  /** Sheds a waiting sequence when the queue is full; the error when the newcomer is the one to go. */
  private makeRoom(submit: Submit, now: number): SequenceError | undefined {
    const { maxWaiting, maxWaitingPerTenant = Infinity } = this.options
    const { waiting } = this
    if (waiting < Math.min(maxWaiting, maxWaitingPerTenant) || submit.replayedTokens > 0) return undefined
    // A replay ran before and its client has a part of its answer: it takes no place in the queue.
    const queue = [...this.allWaiting()].filter((sequence) => sequence.submit.replayedTokens === 0)
    const own = queue.filter((sequence) => isSameLine(sequence, submit))
    if (own.length >= maxWaitingPerTenant) {
      const tenants = new Set(queue.map((sequence) => sequence.submit.tenant)).size
      return this.full(`${own.length} requests of this key and priority`, own.length * tenants, now)
    }
    if (queue.length < maxWaiting) return undefined
    const full = this.full(`${waiting} requests`, waiting, now)
    const shed = chooseShed(this.allWaiting(), submit.priority, submit.tenant)
    if (!shed) return full
    shed.holder?.end(shed, FinishReason.REJECTED, now, full)
    return undefined
  }

  /** The refusal of a newcomer to a line of so many. */
  private full(who: string, line: number, now: number): SequenceError {
    const rate = this.completions.perSecond(now)
    return { code: 'queue_full', message: `${who} are waiting already`, retryAfterMs: retryAfterMs(line, rate) }
  }

  private *allWaiting(): Generator<Sequence> {
    yield* this.lobby
    for (const device of this.devices) for (const { scheduler } of device.residents) yield* scheduler.waiting
  }

  private sweep(): void {
    const now = this.options.clock()
    this.lobby.sweep(now)
    for (const device of this.devices) for (const { scheduler } of device.residents) scheduler.sweep(now)
    this.wake()
    if (this.running + this.waiting > 0) return
    clearInterval(this.sweeper)
    this.sweeper = undefined
    this.checkIdle()
  }

  /** A leak is a bug, not a reason to stop serving: it is reported, loudly. */
  private checkIdle(): void {
    try {
      for (const device of this.devices) {
        device.checkInvariants()
        const kept = device.swap?.usedBytes ?? 0
        if (kept > 0) throw new Error(`${kept} bytes of swap memory in use without a sequence`)
      }
    } catch (error) {
      this.options.log.error({ err: error }, 'KV accounting is wrong')
    }
  }
}

function isSameLine({ submit }: Sequence, { tenant, priority }: Submit): boolean {
  return submit.tenant === tenant && submit.priority === priority
}

function refuse(code: string, message: string): SequenceError {
  return { code, message, retryAfterMs: 0 }
}

/** Why a request cannot meet its deadline: those before it take longer. A replay has been running, it is let in. */
function tooLate(variant: Variant | undefined, submit: Submit, now: number): SequenceError | undefined {
  if (submit.deadlineMs === 0 || submit.replayedTokens > 0) return undefined
  const wait = variant?.resident?.scheduler.expectedWaitMs(submit, now) ?? 0
  if (wait <= submit.deadlineMs) return undefined
  const message = `the requests before it take about ${Math.round(wait)} ms, its deadline is in ${submit.deadlineMs} ms`
  return { code: 'deadline_exceeded', message, retryAfterMs: Math.ceil(wait - submit.deadlineMs) }
}

/** No token is wanted, or a replay already fills the context. */
function nothingToDo(sequence: Sequence): boolean {
  if (sequence.scoreOnly) return !sequence.submit.promptLogprobs
  return sequence.length >= sequence.maxLength
}
