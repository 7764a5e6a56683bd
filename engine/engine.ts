import type { Logger } from 'pino'
import {
  FinishReason,
  VariantState,
  type SequenceDelta,
  type SequenceError,
  type Submit,
} from '../proto/gen/edgeshift/v1/engine.js'
import type { EngineDevice, ResidentVariant } from './device.js'
import type { Precision } from './native.js'
import { checkSubmit, chooseShed } from './scheduler/admission.js'
import { RateMeter, retryAfterMs } from './scheduler/rate.js'
import { Sequence, type SequenceOwner } from './scheduler/sequence.js'

/** A rung as configured, and how far it is. */
export interface Variant {
  /** "model:rung". */
  readonly name: string
  readonly model: string
  readonly precision: Precision
  /** Id of the device it is placed on. */
  readonly device: string
  readonly maxModelLen: number
  readonly vocabSize: number
  state: VariantState
  /** Why FAILED. */
  error: string
  weightBytes: number
  /** Device bytes of weights and workspace: estimated until the first load, then as taken. */
  neededBytes: number
  /** Never unloaded to make room. */
  pinned: boolean
  /** Times it was loaded. */
  loads: number
  /** Set while READY. */
  resident?: ResidentVariant
}

/** Bounds and dependencies of an engine. */
export interface EngineOptions {
  version: string
  /** Sequences that may wait, all variants together. */
  maxWaiting: number
  /** Milliseconds, monotonic. */
  clock: () => number
  log: Logger
}

const SWEEP_MS = 100

/** The engine without its transport: variants on devices, and what is asked of them. */
export class Engine {
  readonly variants = new Map<string, Variant>()
  readonly devices: EngineDevice[] = []
  private arrivals = 0
  private draining = false
  private sweeper: NodeJS.Timeout | undefined
  private readonly completions: RateMeter
  private readonly listeners = new Set<() => void>()

  constructor(readonly options: EngineOptions) {
    this.completions = new RateMeter(options.clock())
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
    this.changed()
  }

  get running(): number {
    return this.devices.reduce((sum, device) => sum + device.running, 0)
  }

  get waiting(): number {
    return this.devices.reduce((sum, device) => sum + device.waiting, 0)
  }

  /** Takes a request; a refused one is answered through its owner and undefined is returned. */
  submit(submit: Submit, owner: SequenceOwner): Sequence | undefined {
    const now = this.options.clock()
    const variant = this.variants.get(submit.variant)
    const error = this.refusal(variant, submit) ?? this.makeRoom(submit, now)
    if (error) {
      owner.deliver(ended(submit.sequenceId, FinishReason.REJECTED, error))
      return undefined
    }
    if (!variant?.resident) return undefined
    const sequence = new Sequence(submit, owner, this.arrivals++, now, variant.maxModelLen)
    if (nothingToDo(sequence)) {
      owner.deliver(ended(submit.sequenceId, FinishReason.LENGTH))
      return undefined
    }
    variant.resident.scheduler.add(sequence)
    variant.resident.device.loop.wake()
    this.sweeper ??= setInterval(() => this.sweep(), SWEEP_MS)
    this.changed()
    return sequence
  }

  /** Ends a sequence before the next step; no effect on a finished one. */
  cancel(sequence: Sequence): void {
    const resident = this.variants.get(sequence.submit.variant)?.resident
    resident?.scheduler.end(sequence, FinishReason.CANCELLED, this.options.clock())
    resident?.device.loop.wake()
  }

  /** A paused sequence keeps its blocks while nobody needs them and is ended after a minute. */
  setPaused(sequence: Sequence, paused: boolean): void {
    if (paused) sequence.pausedSince ??= this.options.clock()
    else sequence.pausedSince = undefined
    this.variants.get(sequence.submit.variant)?.resident?.device.loop.wake()
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
    for (const { resident } of this.variants.values()) resident?.scheduler.endAll(reason, now, error)
    clearInterval(this.sweeper)
    await Promise.all(this.devices.map((device) => device.loop.stop()))
  }

  private refusal(variant: Variant | undefined, submit: Submit): SequenceError | undefined {
    if (this.draining) return refuse('shutting_down', 'the engine is stopping')
    if (!variant) return refuse('invalid_request', `unknown variant ${JSON.stringify(submit.variant.slice(0, 200))}`)
    if (variant.state === VariantState.LOADING) return refuse('loading', `${variant.name} is still loading`)
    if (!variant.resident) return refuse('engine_unavailable', `${variant.name} is not loaded: ${variant.error}`)
    return checkSubmit(submit, variant)
  }

  /** Sheds a waiting sequence when the queue is full; the error when the newcomer is the one to go. */
  private makeRoom(submit: Submit, now: number): SequenceError | undefined {
    const { waiting } = this
    if (waiting < this.options.maxWaiting) return undefined
    const rate = this.completions.perSecond(now)
    const full: SequenceError = {
      code: 'queue_full',
      message: `${waiting} requests are waiting already`,
      retryAfterMs: retryAfterMs(waiting, rate),
    }
    const shed = chooseShed(this.allWaiting(), submit.priority, submit.tenant)
    if (!shed) return full
    this.variants.get(shed.submit.variant)?.resident?.scheduler.end(shed, FinishReason.REJECTED, now, full)
    return undefined
  }

  private *allWaiting(): Generator<Sequence> {
    for (const { resident } of this.variants.values()) if (resident) yield* resident.scheduler.waiting
  }

  private sweep(): void {
    const now = this.options.clock()
    for (const { resident } of this.variants.values()) resident?.scheduler.sweep(now)
    this.wake()
    if (this.running + this.waiting > 0) return
    clearInterval(this.sweeper)
    this.sweeper = undefined
    this.checkIdle()
  }

  /** A leak is a bug, not a reason to stop serving: it is reported, loudly. */
  private checkIdle(): void {
    try {
      for (const device of this.devices) device.checkInvariants()
    } catch (error) {
      this.options.log.error({ err: error }, 'KV accounting is wrong')
    }
  }
}

function refuse(code: string, message: string): SequenceError {
  return { code, message, retryAfterMs: 0 }
}

/** No token is wanted, or a replay already fills the context. */
function nothingToDo(sequence: Sequence): boolean {
  if (sequence.scoreOnly) return !sequence.submit.promptLogprobs
  return sequence.length >= sequence.maxLength
}

function ended(sequenceId: number, finishReason: FinishReason, error?: SequenceError): SequenceDelta {
  return { sequenceId, tokens: [], logprobs: [], promptLogprobs: [], finishReason, error }
}
