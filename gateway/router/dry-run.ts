/** What a decision means in milliseconds and bytes, without doing it. Pure. */
import type { ModelFacts, RouteRequest, RouteResult, RungFacts } from './facts.js'
import { bytesOf } from './limits.js'
import { answerMs, canServe, firstTokenMs, whyNotResident } from './standing.js'

/** The answer of POST /v1/route. Figures nobody has measured yet count as nothing. */
export interface DryRun {
  object: 'route'
  decision: RouteResult['kind']
  /** What would serve it; absent unless it would be served. */
  model?: string
  variant?: string
  device?: string
  code?: string
  reason?: string
  /** What it would wait for, or why it would be refused. */
  why?: string
  prompt_tokens: number
  /** The load that it would start; null when it would start none. */
  load?: { bytes: number; ms: number; evicts: Eviction[]; evicted_bytes: number } | null
  /** Rungs at work that it would wait for. */
  waits_for?: readonly string[]
  /** In the queue for a place in a batch. */
  wait_ms?: number
  first_token_ms?: number
  /** Until the last of max_tokens; absent when the request bounds none. */
  answer_ms?: number
  /** The ladder of the model it is about. */
  rungs?: RungOutlook[]
}

interface Eviction {
  variant: string
  bytes: number
}

interface RungOutlook {
  id: string
  status: RungFacts['state']
  serves: boolean
  needed_bytes: number
  load_ms: number
  why?: string
}

/** Describes `result`, the decision for `request` among `models`; `about` is the model whose ladder is told. */
export function describeDecision(
  request: RouteRequest,
  result: RouteResult,
  models: readonly ModelFacts[],
  about: ModelFacts | undefined,
): DryRun {
  const head = { object: 'route', decision: result.kind, prompt_tokens: request.promptTokens } as const
  const rungs = about && { rungs: about.variants.map(outlookOf) }
  if (result.kind === 'wait') return { ...head, why: result.why, ...rungs }
  if (result.kind === 'refuse') return { ...head, code: result.refusal.code, why: result.refusal.message, ...rungs }
  const { model, variant, engine, code, reason } = result.route
  const all = models.flatMap(({ variants }) => variants)
  const named = all.find(({ name }) => name === variant)
  const rung = named?.elsewhere.find((other) => other.engine === engine) ?? named
  if (!rung) return { ...head, ...rungs }
  return { ...head, model, variant, device: rung.device, code, reason, ...costOf(rung, request, all), ...rungs }
}

function costOf(rung: RungFacts, request: RouteRequest, all: readonly RungFacts[]) {
  const { promptTokens, maxTokens } = request
  const isLoaded = rung.state === 'ready'
  const queued = !isLoaded && !rung.loadable
  return {
    load: isLoaded ? null : loadOf(rung, all),
    ...(queued && { waits_for: rung.room }),
    wait_ms: Math.round(rung.waitMs),
    first_token_ms: Math.round(firstTokenMs(rung, promptTokens)),
    ...(maxTokens !== undefined && { answer_ms: Math.round(answerMs(rung, promptTokens, maxTokens)) }),
  }
}

function loadOf(rung: RungFacts, all: readonly RungFacts[]) {
  const evicts = rung.room.map((variant) => ({ variant, bytes: sizeOf(variant, all) }))
  const evicted_bytes = evicts.reduce((sum, { bytes }) => sum + bytes, 0)
  return { bytes: bytesOf(rung), ms: Math.round(rung.loadMs), evicts, evicted_bytes }
}

function sizeOf(variant: string, all: readonly RungFacts[]): number {
  const rung = all.find(({ name }) => name === variant)
  return rung ? bytesOf(rung) : 0
}

function outlookOf(rung: RungFacts): RungOutlook {
  const why = whyNotResident(rung)
  const { name: id, state: status, neededBytes: needed_bytes } = rung
  const load_ms = Math.round(rung.loadMs)
  return { id, status, serves: canServe(rung), needed_bytes, load_ms, ...(why !== undefined && { why }) }
}
