import {
  afterAbandonedProbe,
  afterFailure,
  afterProbe,
  afterSuccess,
  type Breaker,
  type BreakerPolicy,
  INTACT,
  viewOf,
} from './breaker.js'
import type { BreakerView, ModelFacts, MoveCause, RungFacts, RungPlace } from './facts.js'
import { type LadderMove, type LadderState, moveLadder, type Step, UNPLACED } from './ladder.js'
import { bestPlace, placeKey } from './places.js'
import { rankOf } from './precision.js'
import { standingOf } from './standing.js'

/** Moves that are kept; older ones are in the log. */
const KEPT_MOVES = 256
/** Failures of a rung that come together are one: a step fails all that it holds. */
const ONE_FAILURE_MS = 100

/** One change of a model's rung. */
export interface MoveRecord extends LadderMove {
  model: string
  /** Unix milliseconds. */
  at: number
}

/** Hears of moves and breakers as they happen. */
export interface WatchListener {
  onMove(move: MoveRecord): void
  /** A breaker opened, or was closed by its probe. */
  onBreaker(variant: string, device: string, state: 'open' | 'closed', cause: MoveCause): void
}

/** What is remembered of a rung at an engine to find its breaker again. */
interface Known {
  device: string
  policy: BreakerPolicy
}

/**
 * How rungs have fared: a breaker per rung and device, a ladder per model. Holds the state that decisions see as facts;
 * the rules are in breaker.ts and ladder.ts. `now` is monotonic milliseconds.
 */
export class RungWatch {
  readonly #now: () => number
  readonly #listener: WatchListener
  readonly #breakers = new Map<string, Breaker>()
  readonly #ladders = new Map<string, LadderState>()
  /** By rung and engine. */
  readonly #known = new Map<string, Known>()
  readonly #moves: MoveRecord[] = []
  #version = 0

  constructor(now: () => number, listener: WatchListener) {
    this.#now = now
    this.#listener = listener
  }

  /** Changes whenever facts that were marked before are out of date, but for the passing of time. */
  get version(): number {
    return this.#version
  }

  /** The last moves, oldest first. */
  get moves(): readonly MoveRecord[] {
    return this.#moves
  }

  /**
   * The facts with every rung's breaker, at the engine that serves it best by that, and the model's place on its ladder,
   * which may move by this look.
   */
  mark(model: ModelFacts): ModelFacts {
    const now = this.#now()
    const policy = breakerPolicy(model)
    const see = (rung: RungFacts): RungFacts => {
      // What was lost with an engine may be told only after a look at the box without it: that is no news of the place.
      // No breaker is open there, so that whoever was lost waits for the engine to come back.
      if (!rung.told) return rung
      const at = placeOf(rung)
      this.#known.set(placeKey(at), { device: rung.device, policy })
      return { ...rung, breaker: viewOf(this.#breakerOf(at), policy, now), elsewhere: [] }
    }
    const variants = model.variants.map((rung) => bestPlace([see(rung), ...rung.elsewhere.map(see)]))
    const marked = { ...model, variants }
    const { at, cause, flapping } = this.#look(marked, now)
    return { ...marked, level: at, levelCause: cause, flapping }
  }

  /** A rung failed a request, or a load. */
  failed(at: RungPlace, cause: MoveCause): void {
    const known = this.#known.get(placeKey(at))
    if (!known) return
    const before = this.#breakerOf(at)
    const now = this.#now()
    if (now - before.lastFailureAt < ONE_FAILURE_MS) return
    const after = afterFailure(before, cause, known.policy, now)
    this.#setBreaker(at, after)
    if (after.tripped && !before.tripped) this.#listener.onBreaker(at.variant, known.device, 'open', cause)
  }

  /** A rung answered. */
  succeeded(at: RungPlace, wasProbe: boolean): void {
    const before = this.#breakerOf(at)
    if (before.failures === 0) return
    const after = afterSuccess(before, wasProbe)
    if (after === before) return
    this.#setBreaker(at, after)
    const device = this.#known.get(placeKey(at))?.device ?? ''
    if (before.tripped) this.#listener.onBreaker(at.variant, device, 'closed', before.cause)
  }

  /** A request was sent as the probe of a rung; until it ends no other one goes there. */
  probing(at: RungPlace): void {
    this.#setBreaker(at, afterProbe(this.#breakerOf(at), this.#now()))
  }

  /** The probe ended without a verdict. */
  abandoned(at: RungPlace): void {
    this.#setBreaker(at, afterAbandonedProbe(this.#breakerOf(at)))
  }

  #look(model: ModelFacts, now: number): LadderState {
    const before = this.#ladders.get(model.id) ?? UNPLACED
    const steps = model.variants.map((rung) => toStep(rung, model, this.#breakerOf(placeOf(rung)).lastFailureAt))
    const { degrade_on: degradeOn, recover_after: recoverAfterMs, min_dwell: minDwellMs } = model.policy
    const { state, move } = moveLadder(before, steps, { degradeOn, recoverAfterMs, minDwellMs }, now)
    this.#ladders.set(model.id, state)
    if (move) this.#record({ ...move, model: model.id, at: Date.now() })
    return state
  }

  #record(move: MoveRecord): void {
    this.#moves.push(move)
    if (this.#moves.length > KEPT_MOVES) this.#moves.shift()
    this.#listener.onMove(move)
  }

  #breakerOf(at: RungPlace): Breaker {
    return this.#breakers.get(this.#nameOf(at)) ?? INTACT
  }

  #setBreaker(at: RungPlace, breaker: Breaker): void {
    this.#breakers.set(this.#nameOf(at), breaker)
    this.#version++
  }

  /** By the device, which an engine of several may change. */
  #nameOf(at: RungPlace): string {
    return `${at.variant}@${this.#known.get(placeKey(at))?.device ?? ''}`
  }
}

function placeOf({ name: variant, engine }: RungFacts): RungPlace {
  return { variant, engine }
}

function breakerPolicy({ policy }: ModelFacts): BreakerPolicy {
  return { maxFailures: policy.max_failures, recoverAfterMs: policy.recover_after }
}

function toStep(rung: RungFacts, { policy }: ModelFacts, lastFailureAt: number): Step {
  const standing = standingOf(rung)
  const floor = policy.min_precision
  const common = {
    name: rung.name,
    allowed: floor === undefined || rankOf(rung.precision) <= rankOf(floor),
    lastFailureAt,
  }
  // A breaker that is half open has not shown yet that the rung works.
  if (standing.kind === 'usable' && rung.breaker.state === 'closed') {
    return { ...common, usable: true, coming: false, pressed: false, cause: 'failure', why: '' }
  }
  const cause = causeOf(rung.breaker, standing)
  const { kind } = standing
  return {
    ...common,
    usable: false,
    coming: kind === 'coming',
    pressed: kind === 'queue',
    cause,
    why: whyOf(rung, standing),
  }
}

function causeOf(breaker: BreakerView, standing: ReturnType<typeof standingOf>): MoveCause {
  if (breaker.state === 'open') return breaker.cause
  if (standing.kind === 'queue') return 'pressure'
  return standing.kind === 'out' ? standing.cause : 'failure'
}

function whyOf({ precision }: RungFacts, standing: ReturnType<typeof standingOf>): string {
  return standing.kind === 'usable' ? `${precision} has to prove that it works again` : standing.why
}
