/** What the router decides from, and what it decides. Plain data: nothing here reads a clock or keeps state. */
import type { ModelConfig, Precision } from '../../engine/config/index.js'
import type { Derivation, Quality } from '../../proto/gen/edgeshift/v1/card.js'
import type { ErrorCode } from '../errors.js'
import type { Needs } from '../request.js'

/** Why a rung is left or passed over. */
export const MOVE_CAUSES = ['oom', 'failure', 'pressure', 'deadline'] as const

/** `oom`: it does not fit; `pressure`: what is at work has its place; `deadline`: it would answer too late. */
export type MoveCause = (typeof MOVE_CAUSES)[number]

/** A breaker as a decision sees it. `half_open` takes one request at a time, unless one is on its way. */
export type BreakerView =
  | { state: 'closed' | 'half_open' }
  | { state: 'open'; cause: MoveCause; retryAfterMs: number; why: string }

/** What is known of one rung. Figures that nobody has measured or told yet are 0. */
export interface RungFacts {
  /** "model:rung". */
  name: string
  precision: Precision
  state: 'unloaded' | 'loading' | 'ready' | 'failed'
  weightBytes: number
  device: string
  /** An engine says all this; false: none does now, and what stands here is a guess of what will come. */
  told: boolean
  /** The engine that it is told of, by its place among those of the box. */
  engine: number
  /** The same rung as other engines have it, who serves it soonest in front. Theirs is empty. */
  elsewhere: readonly RungFacts[]
  /** Why it failed, or why it is not resident and cannot be. */
  error?: string
  /** Not resident, but a submit loads it now. */
  loadable: boolean
  /** Not resident; a submit waits in order until what is at work makes room. */
  queueable: boolean
  /** What its load evicts, or what it has to wait for. */
  room: readonly string[]
  /** Device bytes of weights and workspace. */
  neededBytes: number
  /** Never unloaded to make room. */
  pinned: boolean
  /** Times it was loaded since the engine's start. */
  loads: number
  /** Its sequences in the engine: in a batch, and waiting for a place in one. */
  running: number
  queued: number
  /** Tokens of prompt and answer together. */
  maxModelLen: number
  /** Share of the unquantized model's quality, above 0 and at most 1. */
  quality: number
  /** What that was measured by, where it was. */
  measured?: Quality
  /** How the rung was made of wider weights at its last load. */
  derivation?: Derivation
  /** Of one sequence's decode. */
  tokensPerSecond: number
  /** Of one prompt's prefill. */
  promptTokensPerSecond: number
  /** What a load takes now, milliseconds; 0 where it is resident. */
  loadMs: number
  /** What a request that comes now waits for a place in a batch, milliseconds. */
  waitMs: number
  breaker: BreakerView
}

/** What is known of one model. */
export interface ModelFacts {
  id: string
  tags: string[]
  /** Of its longest rung. */
  maxModelLen: number
  /** Unix seconds at which the gateway first saw it. */
  created: number
  /** The ladder, best precision first. */
  variants: RungFacts[]
  policy: ModelConfig['policy']
  /** Name of the rung that requests without a wish get now; better ones are held back until they prove stable. */
  level: string | undefined
  /** Why `level` is not the best rung. */
  levelCause: MoveCause | undefined
  /** It fell again and again from a rung that it had come back to, and stays down for now. */
  flapping: boolean
}

/** A request as the router sees it. */
export interface RouteRequest extends Needs {
  /** id, id:rung, tag or `auto`. */
  model: string
  /** 0 = not known yet. */
  promptTokens: number
  /** Most tokens the answer may have; absent = what the context leaves. */
  maxTokens?: number
  /** Milliseconds left; 0 = no deadline. */
  deadlineMs: number
}

/** Why a rung was chosen; the first word of x-edgeshift-reason. */
export type RouteCode =
  /** The named rung or the precision asked for. */
  | 'requested'
  /** The best rung of the ladder. */
  | 'highest'
  /** The best rung that the request's own limits leave. */
  | 'min_precision'
  | 'memory_limit'
  | 'context'
  /** The ladder does not have the precision asked for; the nearest one. */
  | 'nearest'
  /** Chosen for `speed_priority`. */
  | 'speed'
  /** The policy prefers what is loaded, or what is fastest, to a better rung. */
  | 'resident'
  | 'fastest'
  /** Chosen for `auto`. */
  | 'auto'
  /** Better rungs are being loaded. */
  | 'loading'
  /** Better rungs are usable again, but not for long enough. */
  | 'recovering'
  /** The one request that tries a rung whose breaker was open. */
  | 'probe'
  /** A worse, or a better, rung than the one wanted, and why that was left. */
  | `degraded_${MoveCause}`
  | `raised_${MoveCause}`

/** A rung at one engine. */
export interface RungPlace {
  /** "model:rung". */
  variant: string
  /** By its place among the engines of the box. */
  engine: number
}

/** The rung that serves a request, where, and why this one. */
export interface Route extends RungPlace {
  /** Id of the model. */
  model: string
  code: RouteCode
  /** "code: a sentence". */
  reason: string
  /** It is the breaker's probe: its end decides whether the rung is used again. */
  probe: boolean
}

/** A refusal in terms of the error catalogue. */
export interface Refusal {
  code: ErrorCode
  message: string
  param?: string
  retryAfterMs?: number
}

/** What can be done for a request now: serve it, wait for a rung that is coming, or refuse it. */
export type RouteResult =
  | { kind: 'serve'; route: Route }
  | { kind: 'wait'; why: string }
  | { kind: 'refuse'; refusal: Refusal }

/** A request that was lost in mid-answer. */
export interface Lost {
  /** What was asked for; `deadlineMs` is what is left. */
  request: RouteRequest
  /** Where it was served. */
  route: Route
  /** What failed it again and again without getting on: rungs by name, and by `placeKey` those that did at one engine. */
  failed: ReadonlySet<string>
  cause: MoveCause
}
