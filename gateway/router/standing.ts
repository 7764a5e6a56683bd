/** What one rung can do for one request now. Pure. */
import type { MoveCause, RouteRequest, RungFacts } from './facts.js'

/** Where a rung stands. */
export type Standing =
  /** Resident, or loaded by the request itself. */
  | { kind: 'usable' }
  /** A request waits in the engine until other models have finished. */
  | { kind: 'queue'; why: string }
  /** It is being loaded, or the engine is being started. */
  | { kind: 'coming'; why: string }
  | Out

/** A rung that cannot serve. */
export interface Out {
  kind: 'out'
  cause: MoveCause
  why: string
  retryAfterMs?: number
}

const USABLE: Standing = { kind: 'usable' }

/** What a rung can do, its breaker first. */
export function kindOf({ breaker, state, loadable, queueable }: RungFacts): Standing['kind'] {
  if (breaker.state === 'open') return 'out'
  if (state === 'ready' || loadable) return 'usable'
  if (state === 'loading') return 'coming'
  return queueable ? 'queue' : 'out'
}

/** The same with the reasons. */
export function standingOf(rung: RungFacts): Standing {
  const { breaker, state, precision } = rung
  const kind = kindOf(rung)
  if (kind === 'usable') return USABLE
  if (kind === 'coming') return { kind, why: `${precision} is being loaded` }
  if (kind === 'queue') return { kind, why: `${precision} waits for memory that is in use` }
  if (breaker.state === 'open') {
    const { cause, retryAfterMs, why } = breaker
    return { kind, cause, retryAfterMs, why: `${precision} ${why}` }
  }
  if (state === 'failed') return { kind, cause: 'failure', why: `${precision} failed${because(rung)}` }
  return { kind, cause: 'oom', why: `${precision} does not fit${because(rung)}` }
}

/** True when a request that asks for the rung gets it, at the cost of a load where it is not resident. */
export function canServe(rung: RungFacts): boolean {
  return kindOf(rung) === 'usable'
}

/** Why a rung is not on its device, or does not serve although it is; undefined = it serves from there. */
export function whyNotResident(rung: RungFacts): string | undefined {
  const standing = standingOf(rung)
  if (standing.kind !== 'usable') return standing.why
  if (rung.state === 'ready') return undefined
  return `${rung.precision} is loaded when a request needs it`
}

function because({ error }: RungFacts): string {
  return error === undefined ? '' : `: ${error}`
}

/** Milliseconds until the first token, as far as the figures are known. */
export function firstTokenMs(rung: RungFacts, promptTokens: number): number {
  const { loadMs, waitMs, promptTokensPerSecond } = rung
  const prefill = promptTokensPerSecond > 0 ? (promptTokens / promptTokensPerSecond) * 1000 : 0
  return loadMs + waitMs + prefill
}

/** Milliseconds until the last token of an answer of `tokens`, as far as the figures are known. */
export function answerMs(rung: RungFacts, promptTokens: number, tokens: number): number {
  const { tokensPerSecond } = rung
  return firstTokenMs(rung, promptTokens) + (tokensPerSecond > 0 ? (tokens / tokensPerSecond) * 1000 : 0)
}

/** How sure a deadline must be: the whole answer in time, or at least its first token. */
export type Timeliness = 'whole' | 'begun'

/** True when the deadline can be met; also when there is none, or no figure that says otherwise. */
export function meetsDeadline(rung: RungFacts, request: RouteRequest, timeliness: Timeliness): boolean {
  const { deadlineMs, promptTokens, maxTokens } = request
  if (deadlineMs === 0) return true
  const tokens = timeliness === 'whole' ? (maxTokens ?? 1) : 1
  return answerMs(rung, promptTokens, tokens) <= deadlineMs
}
