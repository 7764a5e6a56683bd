/** Routing under load: what a box of many models decides from, and requests of every form. */
import { performance } from 'node:perf_hooks'
import { decideRoute } from '../../gateway/router/decide.js'
import type { ModelFacts, RouteRequest } from '../../gateway/router/facts.js'
import { modelFacts, routeRequest, type RungSketch } from './router-facts.js'

const STATES: readonly RungSketch[] = [
  'ready',
  'ready',
  'loadable',
  'unloaded',
  'open',
  'failed',
  'queueable',
  'half_open',
]

/** `count` models of three rungs in every state, spread over `devices`. */
export function manyModels(count: number, devices: number): ModelFacts[] {
  const stateOf = (n: number): RungSketch => STATES[n % STATES.length] ?? 'ready'
  return Array.from({ length: count }, (_, i) => {
    const rungs = [stateOf(i), stateOf(i + 3), 'ready'] as const
    const model = modelFacts(`model-${i}`, rungs, { tags: [`tag-${i}`], scale: 1 + (i % 13) })
    for (const rung of model.variants) rung.device = `gpu${i % devices}`
    return model
  })
}

/** Requests by the form in which they ask; `i` picks the model. */
export const FORMS: Readonly<Record<string, (i: number) => RouteRequest>> = {
  model: (i) => routeRequest({ model: `model-${i}` }),
  tag: (i) => routeRequest({ model: `tag-${i}` }),
  rung: (i) => routeRequest({ model: `model-${i}:int8` }),
  precision: (i) => routeRequest({ model: `model-${i}`, precision: 'medium', minPrecision: 'int4' }),
  limits: (i) => routeRequest({ model: `model-${i}`, memoryLimitBytes: 4e9, speedPriority: 0.5 }),
  deadline: (i) => routeRequest({ model: `model-${i}`, deadlineMs: 700 }),
  auto: (i) => routeRequest({ model: 'auto', difficulty: (i % 10) / 10 }),
}

/**
 * Microseconds of each of `count` decisions of one form, after as many to warm up; sorted. Each is the best of `repeats`:
 * with several, what else the machine does meanwhile is not counted.
 */
export function decisionTimes(
  models: readonly ModelFacts[],
  form: (i: number) => RouteRequest,
  count: number,
  repeats = 1,
): Float64Array {
  const times = new Float64Array(count)
  for (let round = 0; round < 2; round++) {
    for (let i = 0; i < count; i++) {
      const request = form(i % models.length)
      times[i] = Infinity
      for (let repeat = 0; repeat < repeats; repeat++) {
        const start = performance.now()
        decideRoute(request, models)
        times[i] = Math.min(times[i] ?? Infinity, (performance.now() - start) * 1000)
      }
    }
  }
  return times.toSorted()
}
