/** From the configuration and what the engine says to what the router decides from and clients are listed. Pure. */
import type { ModelConfig, Precision } from '../engine/config/index.js'
import { VariantState } from '../proto/gen/edgeshift/v1/engine.js'
import type { Offer, Offers } from './engine-client/merge-status.js'
import type { EngineState } from './engine-client/supervisor.js'
import type { ModelFacts, RungFacts } from './router/facts.js'

/** What is known of the engines at a moment. */
export interface EngineSnapshot {
  state: EngineState
  /** Undefined while no session is open. */
  offers: Offers | undefined
}

const STATES: Record<VariantState, RungFacts['state']> = {
  [VariantState.UNSPECIFIED]: 'unloaded',
  [VariantState.UNRECOGNIZED]: 'unloaded',
  [VariantState.UNLOADED]: 'unloaded',
  [VariantState.LOADING]: 'loading',
  [VariantState.READY]: 'ready',
  [VariantState.FAILED]: 'failed',
}

const PRECISIONS: readonly Precision[] = ['fp16', 'int8', 'int4']

/** Share of the unquantized model's quality that a rung keeps where nobody has measured it. */
const USUAL_QUALITY: Record<Precision, number> = { fp16: 1, int8: 0.995, int4: 0.95 }

/** One model, without the marks of its breakers and its ladder. `created` is in Unix seconds. */
export function toModelFacts(config: ModelConfig, { state, offers }: EngineSnapshot, created: number): ModelFacts {
  const known: Offers = offers ?? new Map()
  const variants = rungsOf(config, known).map((rung) => toRungFacts(rung, known.get(rung.name) ?? [], state))
  const longest = Math.max(0, ...variants.map(({ maxModelLen }) => maxModelLen))
  return {
    id: config.id,
    tags: config.tags,
    maxModelLen: longest || (config.max_model_len ?? 0),
    variants,
    created,
    policy: config.policy,
    level: variants[0]?.name,
    levelCause: undefined,
    flapping: false,
  }
}

type RungName = Pick<RungFacts, 'name' | 'precision'>

/** As configured; where a rung's precision is read from its file, as the engine has read them. */
function rungsOf({ id, variants }: ModelConfig, known: Offers): RungName[] {
  const stated = variants.flatMap(({ precision }) => (precision ? [{ name: `${id}:${precision}`, precision }] : []))
  if (stated.length === variants.length) return stated
  const read = [...known.values()].flatMap(([best]) => {
    if (best?.variant.model !== id || !isPrecision(best.variant.precision)) return []
    return [{ name: best.variant.name, precision: best.variant.precision }]
  })
  if (read.length > 0) return read
  // Until the engine has read the files, requests wait for a rung of any name.
  const free = PRECISIONS.filter((precision) => !stated.some((rung) => rung.precision === precision))
  return [...stated, ...free.slice(0, 1).map((precision) => ({ name: `${id}:${precision}`, precision }))]
}

function isPrecision(text: string): text is Precision {
  return PRECISIONS.some((precision) => precision === text)
}

function toRungFacts(rung: RungName, offers: readonly Offer[], engine: EngineState): RungFacts {
  const [best, ...elsewhere] = offers.map((offer) => toldFacts(rung, offer))
  return best ? { ...best, elsewhere } : untoldFacts(rung, engine)
}

/** What one engine says of it. */
function toldFacts(rung: RungName, { engine, variant }: Offer): RungFacts {
  const { weightBytes, neededBytes, device, error, loadable, queueable, maxModelLen } = variant
  const { pinned, loads, room, running, waiting: queued, derivation, quality } = variant
  const memory = { weightBytes, neededBytes, device, loadable, queueable, room, pinned, loads }
  return {
    ...unmeasured(rung),
    ...memory,
    told: true,
    engine,
    maxModelLen,
    running,
    queued,
    state: STATES[variant.state],
    ...(derivation && { derivation }),
    ...(quality && { measured: quality, quality: Math.min(1, quality.referencePerplexity / quality.perplexity) }),
    ...(error && { error }),
  }
}

/** Nobody has said anything of it. */
function untoldFacts(rung: RungName, engine: EngineState): RungFacts {
  const entry = { ...unmeasured(rung), ...NOTHING_TOLD }
  // Without a session every rung is on its way, unless the engine keeps dying.
  const failed = engine === 'crash_loop' || engine === 'up'
  const error = engine === 'up' ? 'the engine does not know it' : 'the engine keeps failing'
  return failed ? { ...entry, state: 'failed', error } : { ...entry, state: 'loading' }
}

function unmeasured({ name, precision }: RungName) {
  const figures = { tokensPerSecond: 0, promptTokensPerSecond: 0, loadMs: 0, waitMs: 0 }
  return { name, precision, quality: USUAL_QUALITY[precision], ...figures, breaker: CLOSED, elsewhere: [] }
}

const CLOSED = { state: 'closed' } as const

const NOTHING_TOLD = {
  weightBytes: 0,
  neededBytes: 0,
  device: '',
  told: false,
  engine: 0,
  loadable: false,
  queueable: false,
  room: [],
  pinned: false,
  loads: 0,
  maxModelLen: 0,
  running: 0,
  queued: 0,
}
