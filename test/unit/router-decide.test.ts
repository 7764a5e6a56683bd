import { describe, expect, it } from 'vitest'
import { decideRoute } from '../../gateway/router/decide.js'
import type { ModelFacts, RouteRequest } from '../../gateway/router/facts.js'
import { modelFacts, routeRequest, type RungSketch } from '../support/router-facts.js'

type Rungs = [RungSketch, RungSketch, RungSketch]
type More = Parameters<typeof modelFacts>[2]

/** "int8 code", "wait", or "error code". */
function outcome(request: Partial<RouteRequest>, models: readonly ModelFacts[]): string {
  const result = decideRoute(routeRequest(request), models)
  if (result.kind === 'wait') return 'wait'
  if (result.kind === 'refuse') return `error ${result.refusal.code}`
  const { route } = result
  expect(route.reason).toMatch(new RegExp(`^${route.code}: [^\\n]+$`))
  return `${route.variant.split(':')[1]} ${route.code}`
}

const ready: Rungs = ['ready', 'ready', 'ready']

describe('a model by id or tag', () => {
  it.each<[Rungs, string]>([
    [ready, 'fp16 highest'],
    [['loadable', 'ready', 'ready'], 'fp16 highest'],
    [['loading', 'ready', 'ready'], 'int8 loading'],
    [['failed', 'ready', 'ready'], 'int8 degraded_failure'],
    [['unloaded', 'unloaded', 'ready'], 'int4 degraded_oom'],
    [['open', 'half_open', 'ready'], 'int8 degraded_failure'],
    [['queueable', 'ready', 'ready'], 'int8 degraded_pressure'],
    [['queueable', 'queueable', 'failed'], 'fp16 highest'],
    [['failed', 'queueable', 'failed'], 'int8 degraded_failure'],
    [['loading', 'loading', 'loading'], 'wait'],
    [['failed', 'loading', 'unloaded'], 'wait'],
    [['failed', 'failed', 'failed'], 'error engine_unavailable'],
    [['open', 'open', 'open'], 'error engine_unavailable'],
  ])('%j: %s', (rungs, expected) => {
    const model = modelFacts('m', rungs, { tags: ['chat'] })
    expect(outcome({}, [model])).toBe(expected)
    expect(outcome({ model: 'chat' }, [model])).toBe(expected)
  })

  it.each<[Rungs, string]>([
    [ready, 'int8 recovering'],
    [['failed', 'ready', 'ready'], 'int8 degraded_failure'],
    [['half_open', 'ready', 'ready'], 'fp16 probe'],
    [['unloaded', 'failed', 'ready'], 'int4 degraded_failure'],
    [['ready', 'open', 'open'], 'fp16 raised_failure'],
  ])('at int8 with %j: %s', (rungs, expected) => {
    expect(outcome({}, [modelFacts('m', rungs, { level: 'm:int8', levelCause: 'failure' })])).toBe(expected)
  })

  it('is refused when nobody knows the name', () => {
    expect(outcome({ model: 'x' }, [modelFacts('m', ready)])).toBe('error model_not_found')
  })

  it('says when a retry may help: when the first breaker lets a request through', () => {
    const result = decideRoute(routeRequest(), [modelFacts('m', ['open', 'open', 'failed'])])
    expect(result).toMatchObject({ kind: 'refuse', refusal: { retryAfterMs: 5000 } })
  })
})

describe('what the policy prefers', () => {
  const slow = { tokensPerSecond: 5 }
  const far = { state: 'unloaded', loadable: true } as const
  it.each<['resident' | 'fastest', Partial<RouteRequest>, Rungs, string]>([
    ['resident', {}, ready, 'fp16 highest'],
    ['resident', {}, ['loadable', 'ready', 'ready'], 'int8 resident'],
    ['resident', {}, ['loadable', 'loadable', 'ready'], 'int4 resident'],
    ['resident', {}, ['loadable', 'loadable', 'loadable'], 'fp16 highest'],
    ['resident', {}, ['loading', 'loadable', 'ready'], 'int4 resident'],
    ['resident', {}, ['failed', 'ready', 'loadable'], 'int8 degraded_failure'],
    ['resident', {}, ['failed', 'loadable', 'ready'], 'int4 resident'],
    ['resident', {}, ['loadable', 'open', 'failed'], 'fp16 highest'],
    ['resident', { minPrecision: 'int8' }, ['loadable', 'loadable', 'ready'], 'fp16 highest'],
    ['resident', { precision: 'int8' }, ['ready', 'loadable', 'ready'], 'int8 requested'],
    ['resident', { speedPriority: 0 }, ['loadable', 'ready', 'ready'], 'fp16 highest'],
    ['resident', { degrade: 'forbid' }, ['loadable', 'ready', 'ready'], 'fp16 highest'],
    ['resident', {}, [{ ...far, breaker: { state: 'half_open' } }, 'ready', 'ready'], 'int8 resident'],
    ['resident', {}, ['half_open', 'ready', 'ready'], 'fp16 highest'],
    ['fastest', {}, ready, 'int4 fastest'],
    ['fastest', {}, ['ready', 'ready', slow], 'int8 fastest'],
    ['fastest', {}, ['ready', slow, slow], 'fp16 highest'],
    ['fastest', {}, ['ready', 'ready', 'open'], 'int8 raised_failure'],
    ['fastest', {}, ['ready', 'ready', { tokensPerSecond: 0 }], 'int4 fastest'],
    ['fastest', {}, ['ready', 'ready', { ...far, tokensPerSecond: 19 }], 'int8 fastest'],
    ['fastest', {}, ['ready', 'ready', { ...far, tokensPerSecond: 21 }], 'int4 fastest'],
    ['fastest', { minPrecision: 'fp16' }, ready, 'fp16 highest'],
    ['fastest', { precision: 'fp16' }, ready, 'fp16 requested'],
  ])('%s, %j with %j: %s', (prefer, request, rungs, expected) => {
    expect(outcome(request, [modelFacts('m', rungs, { policy: { prefer } })])).toBe(expected)
  })

  it('says what was passed over', () => {
    const reason = (prefer: 'resident' | 'fastest', rungs: Rungs): string => {
      const result = decideRoute(routeRequest(), [modelFacts('m', rungs, { policy: { prefer } })])
      return result.kind === 'serve' ? result.route.reason : result.kind
    }
    expect(reason('resident', ['loadable', 'ready', 'ready'])).toBe('resident: int8 is loaded, fp16 would have to be')
    expect(reason('fastest', ready)).toBe('fastest: int4 answers faster than fp16')
  })

  it('holds within what the ladder allows', () => {
    const held = { policy: { prefer: 'resident' as const }, level: 'm:int8', levelCause: 'failure' as const }
    expect(outcome({}, [modelFacts('m', ['ready', 'loadable', 'failed'], held)])).toBe('int8 recovering')
    expect(outcome({}, [modelFacts('m', ['ready', 'loadable', 'ready'], held)])).toBe('int4 resident')
    expect(outcome({}, [modelFacts('m', ['half_open', 'ready', 'ready'], held)])).toBe('fp16 probe')
    const unloaded = { state: 'unloaded', loadable: true, breaker: { state: 'half_open' } } as const
    expect(outcome({}, [modelFacts('m', [unloaded, 'ready', 'ready'], held)])).toBe('int8 recovering')
  })
})

describe('a rung or a precision', () => {
  it.each<[Partial<RouteRequest>, Rungs, string]>([
    [{ model: 'm:int8' }, ready, 'int8 requested'],
    [{ precision: 'int8' }, ready, 'int8 requested'],
    [{ precision: 'high' }, ready, 'fp16 requested'],
    [{ precision: 'medium' }, ready, 'int8 requested'],
    [{ precision: 'low' }, ready, 'int4 requested'],
    [{ model: 'm:int8', precision: 'medium' }, ready, 'int8 requested'],
    [{ model: 'm:int8', precision: 'low' }, ready, 'error invalid_request'],
    [{ model: 'm:int8' }, ['ready', 'loadable', 'ready'], 'int8 requested'],
    [{ model: 'm:int8' }, ['ready', 'queueable', 'ready'], 'int8 requested'],
    [{ model: 'm:int8' }, ['ready', 'loading', 'ready'], 'wait'],
    [{ model: 'm:int8' }, ['ready', 'half_open', 'ready'], 'int8 requested'],
    [{ model: 'm:int8' }, ['ready', 'open', 'ready'], 'int4 degraded_failure'],
    [{ model: 'm:int8' }, ['ready', 'unloaded', 'failed'], 'fp16 raised_oom'],
    [{ model: 'm:fp16' }, ['unloaded', 'unloaded', 'ready'], 'int4 degraded_oom'],
    [{ model: 'm:int4' }, ['ready', 'ready', 'open'], 'int8 raised_failure'],
    [{ model: 'm:int8', degrade: 'forbid' }, ['ready', 'open', 'ready'], 'error degrade_forbidden'],
    [{ model: 'm:int8', degrade: 'forbid' }, ['ready', 'queueable', 'ready'], 'int8 requested'],
    [{ degrade: 'forbid' }, ['failed', 'ready', 'ready'], 'error degrade_forbidden'],
    [{ degrade: 'forbid' }, ['loading', 'ready', 'ready'], 'wait'],
    [{ degrade: 'forbid' }, ready, 'fp16 highest'],
  ])('%j with %j: %s', (request, rungs, expected) => {
    expect(outcome(request, [modelFacts('m', rungs)])).toBe(expected)
  })

  it('that the ladder does not have is served by the nearest one, unless that is forbidden', () => {
    const model = modelFacts('m', ready)
    model.variants.splice(1, 1)
    expect(outcome({ precision: 'int8' }, [model])).toBe('int4 nearest')
    expect(outcome({ precision: 'int8', degrade: 'forbid' }, [model])).toBe('error no_rung_allowed')
    expect(outcome({ precision: 'medium' }, [model])).toBe('fp16 requested')
  })

  it('stays with degrade: forbid although the ladder stands lower', () => {
    const model = modelFacts('m', ready, { level: 'm:int4', levelCause: 'pressure' })
    expect(outcome({ degrade: 'forbid' }, [model])).toBe('fp16 highest')
    expect(outcome({ model: 'm:fp16' }, [model])).toBe('fp16 requested')
  })
})

describe('a rung that did not fit and fits again', () => {
  const left = { level: 'm:int4', levelCause: 'oom' as const }
  const back: Rungs = ['loadable', 'unloaded', 'ready']
  it.each<[Partial<RouteRequest>, Rungs, More, string]>([
    [{ model: 'm:fp16' }, back, left, 'int4 recovering'],
    [{ precision: 'high' }, back, left, 'int4 recovering'],
    [{ precision: 'int8' }, ['loadable', 'loadable', 'ready'], left, 'int4 recovering'],
    [{ model: 'auto' }, back, left, 'int4 auto'],
    [{ model: 'm:fp16' }, ['loadable', 'unloaded', 'loadable'], left, 'int4 recovering'],
    [{ model: 'm:fp16' }, ['queueable', 'unloaded', 'ready'], left, 'int4 recovering'],
    // Nothing is loaded for it, or nobody would serve it otherwise, or it allows no other.
    [{ model: 'm:fp16' }, ['ready', 'unloaded', 'ready'], left, 'fp16 requested'],
    [{ model: 'm:fp16' }, ['loading', 'unloaded', 'ready'], left, 'wait'],
    [{ model: 'm:fp16' }, ['loadable', 'unloaded', 'failed'], left, 'fp16 requested'],
    [{ model: 'm:fp16', minPrecision: 'high' }, back, left, 'fp16 requested'],
    [{ model: 'm:fp16', degrade: 'forbid' }, back, left, 'fp16 requested'],
    // Other causes end by themselves: a breaker by its probe, pressure by turns.
    [{ model: 'm:fp16' }, back, { ...left, levelCause: 'pressure' }, 'fp16 requested'],
    [{ model: 'm:fp16' }, back, {}, 'fp16 requested'],
  ])('%j with %j: %j', (request, rungs, more, expected) => {
    expect(outcome(request, [modelFacts('m', rungs, more)])).toBe(expected)
  })
})

describe('limits', () => {
  it.each<[Partial<RouteRequest>, Rungs, More, string]>([
    [{ minPrecision: 'int8' }, ['failed', 'failed', 'ready'], {}, 'error engine_unavailable'],
    [{}, ['failed', 'failed', 'ready'], { policy: { min_precision: 'int8' } }, 'error engine_unavailable'],
    [{ model: 'm:int4', minPrecision: 'int8' }, ready, {}, 'int8 min_precision'],
    [{ model: 'm:int4' }, ready, { policy: { min_precision: 'int8' } }, 'int8 min_precision'],
    [{ model: 'm:int4', minPrecision: 'high', degrade: 'forbid' }, ready, {}, 'error no_rung_allowed'],
    [{ memoryLimitBytes: 1.5e9 }, ready, {}, 'int8 memory_limit'],
    [{ memoryLimitBytes: 1.5e9, minPrecision: 'high' }, ready, {}, 'error no_rung_allowed'],
    [{ memoryLimitBytes: 1e6 }, ready, {}, 'error no_rung_allowed'],
    [{ promptTokens: 991 }, ready, {}, 'error context_length_exceeded'],
    [{ promptTokens: 1500 }, ['ready', 'ready', { maxModelLen: 2000 }], {}, 'int4 context'],
    [{ model: 'm:fp16', promptTokens: 1500 }, ['ready', 'ready', { maxModelLen: 2000 }], {}, 'int4 context'],
    [{}, ['failed', 'ready', 'ready'], { policy: { degrade_on: ['oom'] } }, 'error degrade_forbidden'],
    [{}, ['unloaded', 'ready', 'ready'], { policy: { degrade_on: ['oom'] } }, 'int8 degraded_oom'],
    [{}, ['queueable', 'ready', 'ready'], { policy: { degrade_on: ['oom'] } }, 'fp16 highest'],
    [{ speedPriority: 1 }, ready, {}, 'int4 speed'],
    [{ speedPriority: 0.01 }, ready, {}, 'fp16 speed'],
    [{ speedPriority: 1, minPrecision: 'int8' }, ready, {}, 'int8 speed'],
  ])('%j with %j %j: %s', (request, rungs, more, expected) => {
    expect(outcome(request, [modelFacts('m', rungs, more)])).toBe(expected)
  })

  it('names the rung that would hold a prompt that is too long', () => {
    const model = modelFacts('m', ['ready', 'ready', { maxModelLen: 2000 }])
    const refused = decideRoute(routeRequest({ promptTokens: 1500, minPrecision: 'int8' }), [model])
    const message =
      "the prompt has 1500 tokens and max_tokens is 10, but 'm:fp16' has a context of 1000 tokens; 'm:int4' would fit (2000)"
    expect(refused).toEqual({ kind: 'refuse', refusal: { code: 'context_length_exceeded', message, param: 'prompt' } })
  })
})

describe('deadlines', () => {
  // 10 prompt tokens take 100 ms; 10 tokens take 1000, 556 and 333 ms.
  it.each<[Partial<RouteRequest>, Rungs, string]>([
    [{ deadlineMs: 1100 }, ready, 'fp16 highest'],
    [{ deadlineMs: 700 }, ready, 'int8 degraded_deadline'],
    [{ deadlineMs: 500 }, ready, 'int4 degraded_deadline'],
    [{ deadlineMs: 300 }, ready, 'int4 degraded_deadline'],
    [{ deadlineMs: 300, degrade: 'forbid' }, ready, 'fp16 highest'],
    [{ deadlineMs: 300 }, ['failed', 'ready', 'open'], 'int8 degraded_failure'],
    [{ deadlineMs: 140 }, ready, 'int4 degraded_deadline'],
    [{ deadlineMs: 50 }, ready, 'error deadline_exceeded'],
    [{ deadlineMs: 140, degrade: 'forbid' }, ready, 'error deadline_exceeded'],
    [{ deadlineMs: 1500 }, ['loadable', 'ready', 'ready'], 'int8 degraded_deadline'],
    [{ deadlineMs: 700 }, [{ waitMs: 5000 }, { waitMs: 5000 }, 'ready'], 'int4 degraded_deadline'],
    [{ deadlineMs: 1 }, [{ tokensPerSecond: 0, promptTokensPerSecond: 0 }, 'ready', 'ready'], 'fp16 highest'],
  ])('%j with %j: %s', (request, rungs, expected) => {
    expect(outcome(request, [modelFacts('m', rungs)])).toBe(expected)
  })
})

describe('auto', () => {
  const small = modelFacts('small', ready)
  const large = modelFacts('large', ready, { scale: 30 })
  const choose = (request: Partial<RouteRequest>, models: readonly ModelFacts[]): string => {
    const result = decideRoute(routeRequest({ model: 'auto', ...request }), models)
    return result.kind === 'serve' ? `${result.route.variant} ${result.route.code}` : result.kind
  }

  it.each<[Partial<RouteRequest>, string]>([
    [{ difficulty: 0 }, 'small:int4 auto'],
    [{ difficulty: 1 }, 'large:int8 auto'],
    [{ difficulty: 0.9 }, 'large:int8 auto'],
    [{ difficulty: 1, speedPriority: 1 }, 'small:int4 auto'],
    [{ difficulty: 1, memoryLimitBytes: 3e9 }, 'small:fp16 auto'],
    [{ difficulty: 0, minPrecision: 'high' }, 'small:fp16 auto'],
    [{ difficulty: 1, precision: 'int4' }, 'large:int4 auto'],
  ])('%j: %s', (request, expected) => {
    expect(choose(request, [small, large])).toBe(expected)
  })

  it.each([
    [0, 'small:int4 auto'],
    [0.5, 'small:int8 auto'],
    [1, 'small:fp16 auto'],
  ])('on one model alone, difficulty %s: %s', (difficulty, expected) => {
    expect(choose({ difficulty }, [small])).toBe(expected)
  })

  it('guesses the speed of what was not measured by that of what was, whatever the box', () => {
    for (const speed of [0.01, 1, 100]) {
      const rungs = [{ tokensPerSecond: 0 }, { tokensPerSecond: 0 }, { tokensPerSecond: 30 * speed }] as const
      expect(choose({ difficulty: 0 }, [modelFacts('m', [...rungs])])).toBe('m:int4 auto')
    }
  })

  it('prefers what is resident where that is as good', () => {
    const models = [
      modelFacts('a', [{ ...LOADABLE }, 'failed', 'failed']),
      modelFacts('b', ['ready', 'failed', 'failed']),
    ]
    expect(choose({}, models)).toBe('b:fp16 auto')
  })

  it('leaves out what is broken, waits for what is coming and refuses when there is nothing', () => {
    expect(choose({ difficulty: 1 }, [small, modelFacts('large', ['open', 'open', 'failed'], { scale: 30 })])).toBe(
      'small:fp16 auto',
    )
    expect(choose({}, [modelFacts('a', ['failed', 'loading', 'open'])])).toBe('wait')
    expect(outcome({ model: 'auto' }, [modelFacts('a', ['failed', 'open', 'open'])])).toBe('error engine_unavailable')
    expect(outcome({ model: 'auto', promptTokens: 5000 }, [small])).toBe('error context_length_exceeded')
    expect(outcome({ model: 'auto', deadlineMs: 1 }, [small])).toBe('error deadline_exceeded')
  })
})

const LOADABLE = { state: 'unloaded', loadable: true, loadMs: 2000 } as const
