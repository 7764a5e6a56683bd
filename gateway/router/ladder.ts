/**
 * Where a model stands on its ladder: the rung that requests without a wish get. It leaves a rung that cannot serve at
 * once, and comes back only when a better one has been usable for a while. Pure.
 */
import type { MoveCause } from './facts.js'

/** Times and bounds of a ladder, in milliseconds. */
export interface LadderPolicy {
  /** Causes that may move it down. */
  degradeOn: readonly MoveCause[]
  /** How long a better rung must have been usable, without a failure, before a move up. */
  recoverAfterMs: number
  /** Shortest time from a move to the next move up. */
  minDwellMs: number
}

/** Falls from a rung that it had come back to, within the window, that count as flapping. */
const MAX_RELAPSES = 3
/** The window, and the time a better rung must be usable before flapping ends, in recover_after + min_dwell. */
const FLAP_WINDOW = 10
/** At least that, in milliseconds. */
const MIN_WINDOW_MS = 60_000

/** How long a rung may wait for memory before it is left. */
const PRESSURE_MS = 2000

/** One rung as the ladder sees it, best first. */
export interface Step {
  name: string
  /** It can serve now, or a submit makes it. */
  usable: boolean
  /** It is on its way: neither usable nor a reason to leave it. */
  coming: boolean
  /** What is at work has its memory: a reason to leave it when that lasts. */
  pressed: boolean
  /** Why it is not usable. */
  cause: MoveCause
  why: string
  /** The policy's min_precision allows it. */
  allowed: boolean
  lastFailureAt: number
}

/** Where it stands. Times are milliseconds of one monotonic clock. */
export interface LadderState {
  /** Name of the rung; undefined before the first look. */
  at: string | undefined
  /** Why it is not the best one. */
  cause: MoveCause | undefined
  movedAt: number
  /** Since when it waits for memory; undefined = it does not. */
  pressedSince: number | undefined
  /** Since when each rung is usable without a break. */
  usableSince: ReadonlyMap<string, number>
  /** It came back to where it stands. */
  recovered: boolean
  /** When it fell again from where it had come back to. */
  relapses: readonly number[]
  flapping: boolean
}

/** One change of rung. */
export interface LadderMove {
  from: string
  to: string
  cause: MoveCause | 'recovered'
  why: string
  /** It begins to count as flapping with this move. */
  alarm: boolean
}

/** Before the first look. */
export const UNPLACED: LadderState = {
  at: undefined,
  cause: undefined,
  movedAt: -Infinity,
  pressedSince: undefined,
  usableSince: new Map(),
  recovered: false,
  relapses: [],
  flapping: false,
}

/** Looks at the rungs at `now` and moves at most once. */
export function moveLadder(
  before: LadderState,
  steps: readonly Step[],
  policy: LadderPolicy,
  now: number,
): { state: LadderState; move?: LadderMove } {
  const usableSince = new Map(
    steps.flatMap(({ name, usable }) => (usable ? [[name, before.usableSince.get(name) ?? now]] : [])),
  )
  const place = Math.max(
    0,
    steps.findIndex(({ name }) => name === before.at),
  )
  const current = steps[place]
  if (!current) return { state: { ...before, at: undefined, usableSince } }
  const pressedSince = current.pressed ? (before.pressedSince ?? now) : undefined
  const state = { ...before, at: current.name, usableSince, pressedSince }
  const leaves = current.pressed ? now - (pressedSince ?? now) >= PRESSURE_MS : !current.usable && !current.coming
  if (leaves) return leave(state, steps, place, policy, now)
  return comeBack(state, steps, place, policy, now)
}

/** The rung cannot serve: the next one below that can, else the nearest above. */
function leave(state: LadderState, steps: readonly Step[], place: number, policy: LadderPolicy, now: number) {
  const current = steps[place]
  if (!current || !policy.degradeOn.includes(current.cause)) return { state }
  const serves = ({ usable, allowed }: Step): boolean => usable && allowed
  const to = steps.slice(place + 1).find(serves) ?? steps.slice(0, place).findLast(serves)
  if (!to) return { state }
  const relapses = recent(state.recovered ? [...state.relapses, now] : state.relapses, policy, now)
  const flapping = state.flapping || relapses.length >= MAX_RELAPSES
  const { cause, why } = current
  const move = { from: current.name, to: to.name, cause, why, alarm: flapping && !state.flapping }
  const fallen = { at: to.name, cause, movedAt: now, pressedSince: undefined, recovered: false, relapses, flapping }
  return { state: { ...state, ...fallen }, move }
}

/** The best rung above that has been usable for long enough. */
function comeBack(state: LadderState, steps: readonly Step[], place: number, policy: LadderPolicy, now: number) {
  if (place === 0 || now - state.movedAt < policy.minDwellMs) return { state }
  const needed = state.flapping ? windowMs(policy) : policy.recoverAfterMs
  const to = steps.slice(0, place).find(({ name, usable, allowed, lastFailureAt }) => {
    const since = Math.max(state.usableSince.get(name) ?? now, lastFailureAt)
    return usable && allowed && now - since >= needed
  })
  const from = steps[place]
  if (!to || !from) return { state }
  const why = `${to.name} has been usable for ${Math.round(needed / 1000)} s`
  const relapses = state.flapping ? [] : state.relapses
  const cause = to === steps[0] ? undefined : state.cause
  const moved = { ...state, at: to.name, cause, movedAt: now, recovered: true, relapses, flapping: false }
  return { state: moved, move: { from: from.name, to: to.name, cause: 'recovered' as const, why, alarm: false } }
}

function windowMs({ recoverAfterMs, minDwellMs }: LadderPolicy): number {
  return Math.max(MIN_WINDOW_MS, FLAP_WINDOW * (recoverAfterMs + minDwellMs))
}

function recent(times: readonly number[], policy: LadderPolicy, now: number): number[] {
  return times.filter((time) => now - time < windowMs(policy)).slice(-MAX_RELAPSES)
}
