/** Models as the router sees them, with every figure that a test does not name at rest. */
import { decideRoute } from '../../gateway/router/decide.js'
import type { Lost, ModelFacts, RouteRequest, RouteResult, RungFacts } from '../../gateway/router/facts.js'
import { nextRoute } from '../../gateway/router/next-route.js'

type Precision = RungFacts['precision']

/** Device bytes of each rung: a model of a billion weights. */
const BYTES: Record<Precision, number> = { fp16: 2e9, int8: 1.06e9, int4: 0.56e9 }
const QUALITY: Record<Precision, number> = { fp16: 1, int8: 0.995, int4: 0.95 }
const SPEED: Record<Precision, number> = { fp16: 10, int8: 18, int4: 30 }

/** What a test says of a rung: a state, or more. */
export type RungSketch = RungFacts['state'] | 'loadable' | 'queueable' | 'open' | 'half_open' | Partial<RungFacts>

/** A rung of `id`; `scale` multiplies its size and divides its speed. */
function rungFacts(id: string, precision: Precision, sketch: RungSketch, scale: number): RungFacts {
  const facts: RungFacts = {
    name: `${id}:${precision}`,
    precision,
    state: 'ready',
    weightBytes: BYTES[precision] * scale,
    device: 'cpu0',
    told: true,
    engine: 0,
    elsewhere: [],
    loadable: false,
    queueable: false,
    room: [],
    neededBytes: BYTES[precision] * scale,
    pinned: false,
    loads: 0,
    running: 0,
    queued: 0,
    maxModelLen: 1000,
    quality: QUALITY[precision],
    tokensPerSecond: SPEED[precision] / scale,
    promptTokensPerSecond: 100 / scale,
    loadMs: 0,
    waitMs: 0,
    breaker: { state: 'closed' },
  }
  if (typeof sketch === 'object') return { ...facts, ...sketch }
  if (sketch === 'open') {
    return {
      ...facts,
      breaker: { state: 'open', cause: 'failure', retryAfterMs: 5000, why: 'failed 3 times in a row' },
    }
  }
  if (sketch === 'half_open') return { ...facts, breaker: { state: 'half_open' } }
  if (sketch === 'loadable' || sketch === 'queueable') {
    return { ...facts, state: 'unloaded', [sketch]: true, loadMs: 2000 }
  }
  return { ...facts, state: sketch }
}

/** A model with the three rungs as sketched, at its best rung. */
export function modelFacts(
  id: string,
  rungs: readonly [RungSketch, RungSketch, RungSketch],
  more: Partial<Omit<ModelFacts, 'policy'>> & { policy?: Partial<ModelFacts['policy']>; scale?: number } = {},
): ModelFacts {
  const { policy, scale = 1, ...rest } = more
  const precisions = ['fp16', 'int8', 'int4'] as const
  return {
    id,
    tags: [],
    maxModelLen: 1000,
    created: 0,
    variants: precisions.map((precision, index) => rungFacts(id, precision, rungs[index] ?? 'ready', scale)),
    level: `${id}:fp16`,
    levelCause: undefined,
    flapping: false,
    policy: {
      prefer: 'highest_that_fits',
      degrade_on: ['oom', 'failure', 'pressure', 'deadline'],
      max_failures: 3,
      recover_after: 60_000,
      min_dwell: 120_000,
      ...policy,
    },
    ...rest,
  }
}

/** A request without a wish. */
export function routeRequest(more: Partial<RouteRequest> = {}): RouteRequest {
  return { model: 'm', promptTokens: 10, maxTokens: 10, deadlineMs: 0, ...more }
}

/** A directory's routing over one model, without state. */
export function routesOf(model: ModelFacts) {
  return {
    route: (request: RouteRequest): RouteResult => decideRoute(request, [model]),
    nextRoute: (lost: Lost): RouteResult => nextRoute(model, lost),
    unsent: (): void => undefined,
  }
}
