/** A rung that two engines have: which of them serves, and whose breaker hears of it. */
import { describe, expect, it } from 'vitest'
import { parseConfig } from '../../engine/config/index.js'
import { mergeStatus } from '../../gateway/engine-client/merge-status.js'
import { type EngineSnapshot, toModelFacts } from '../../gateway/model-facts.js'
import { decideRoute } from '../../gateway/router/decide.js'
import type { ModelFacts, Route } from '../../gateway/router/facts.js'
import { nextRoute } from '../../gateway/router/next-route.js'
import { bestPlace, placeKey } from '../../gateway/router/places.js'
import { RungWatch } from '../../gateway/router/watch.js'
import { DeviceStatus, EngineStatus, VariantState, VariantStatus } from '../../proto/gen/edgeshift/v1/engine.js'
import { modelFacts, routeRequest, type RungSketch } from '../support/router-facts.js'

const { READY } = VariantState
const [CONFIG] = parseConfig(
  'models: [{ id: m, variants: [{ precision: fp16, path: x }, { precision: int4, path: y }] }]',
  'models.yaml',
).models
const RECOVERED_MS = 61_000

/** Engines of a device each with a clock; "one" has the shorter queue unless the test says something else. */
class Box {
  now = 0
  readonly moves: string[] = []
  readonly breakers: string[] = []
  running = { one: 0, two: 2 }
  /** What "one" or "two" says of the best rung beside that. */
  told: Partial<Record<'one' | 'two', Partial<VariantStatus>>> = {}
  readonly watch = new RungWatch(() => this.now, {
    onMove: ({ from, to }) => this.moves.push(`${from} ${to}`),
    onBreaker: (variant, device, state) => this.breakers.push(`${variant}@${device} ${state}`),
  })

  get facts(): ModelFacts {
    const merged = mergeStatus([this.status('one'), this.status('two')], false)
    return this.look({ state: 'up', offers: merged?.offers })
  }

  /** What one sees while both engines are down. */
  get factsWithout(): ModelFacts {
    return this.look({ state: 'starting', offers: undefined })
  }

  private look(snapshot: EngineSnapshot): ModelFacts {
    if (!CONFIG) throw new Error('the configuration has a model')
    return this.watch.mark(toModelFacts(CONFIG, snapshot, 0))
  }

  /** A request that comes a second later; a probe is taken to be sent. */
  send(): Route {
    this.now += 1000
    const result = decideRoute(routeRequest(), [this.facts])
    if (result.kind !== 'serve') throw new Error(result.kind)
    if (result.route.probe) this.watch.probing(result.route)
    return result.route
  }

  /** Requests fail where they are sent until a breaker opens. */
  break(): void {
    for (let i = 0; i < 3; i++) this.watch.failed(this.send(), 'failure')
  }

  private status(device: 'one' | 'two'): EngineStatus {
    const running = this.running[device]
    const rung = (precision: string, more: Partial<VariantStatus>) =>
      VariantStatus.create({ name: `m:${precision}`, model: 'm', precision, maxModelLen: 100, state: READY, ...more })
    return EngineStatus.create({
      variants: [rung('fp16', { running, device, ...this.told[device] }), rung('int4', { running, device })],
      devices: [DeviceStatus.create({ id: device, budgetBytes: 1000 })],
    })
  }
}

const at = ({ variant, engine, probe }: Route) => [variant, engine, probe]

describe('a rung that fails at one engine and works at another', () => {
  it('is served there, and the model stays on it', () => {
    const box = new Box()
    box.break()
    expect(at(box.send())).toEqual(['m:fp16', 1, false])
    expect(box.breakers).toEqual(['m:fp16@one open'])
    expect(box.moves).toEqual([])
    const failed: ReadonlySet<string> = new Set()
    const lost = { request: routeRequest(), route: { ...box.send(), engine: 0 }, failed, cause: 'failure' as const }
    expect(nextRoute(box.facts, lost)).toMatchObject({ kind: 'serve', route: { variant: 'm:fp16', engine: 1 } })
  })

  it('is tried again by one request, whose token closes the breaker wherever the next one would go', () => {
    const box = new Box()
    box.break()
    box.now += RECOVERED_MS
    const probe = box.send()
    expect(at(probe)).toEqual(['m:fp16', 0, true])
    expect(at(box.send())).toEqual(['m:fp16', 1, false])
    box.running.one = 5
    void box.facts
    box.watch.succeeded(probe, probe.probe)
    expect(box.breakers).toEqual(['m:fp16@one open', 'm:fp16@one closed'])
    expect(at(box.send())).toEqual(['m:fp16', 1, false])
    box.running.one = 0
    expect(at(box.send())).toEqual(['m:fp16', 0, false])
    expect(box.moves).toEqual([])
  })

  it('is tried again by another request when the first is abandoned', () => {
    const box = new Box()
    box.break()
    box.now += RECOVERED_MS
    box.watch.abandoned(box.send())
    expect(at(box.send())).toEqual(['m:fp16', 0, true])
  })

  it('is not loaded again only to be tried', () => {
    const box = new Box()
    box.break()
    box.now += RECOVERED_MS
    box.told.one = { state: VariantState.UNLOADED, loadable: true }
    expect(at(box.send())).toEqual(['m:fp16', 1, false])
  })

  it('is blamed for a crash that is told after a look at the box without its engines', () => {
    const box = new Box()
    for (let crash = 0; crash < 3; crash++) {
      const sent = box.send()
      expect(box.factsWithout.variants[0]).toMatchObject({ state: 'loading', breaker: { state: 'closed' } })
      box.watch.failed(sent, 'failure')
    }
    expect(box.breakers).toEqual(['m:fp16@one open'])
    const lost = { request: routeRequest(), route: box.send(), failed: new Set<string>(), cause: 'failure' as const }
    expect(nextRoute(box.factsWithout, lost).kind).toBe('wait')
  })

  it.each<[string, [string, number][], string, number]>([
    ['stays where it has not failed', [['m:fp16', 0]], 'm:fp16', 1],
    ['stays where it failed elsewhere', [['m:fp16', 1]], 'm:fp16', 0],
    [
      'leaves a rung that failed at both',
      [
        ['m:fp16', 0],
        ['m:fp16', 1],
      ],
      'm:int4',
      0,
    ],
    [
      'goes where the next rung has not failed',
      [
        ['m:fp16', 0],
        ['m:fp16', 1],
        ['m:int4', 0],
      ],
      'm:int4',
      1,
    ],
  ])('lets a lost request go on: %s', (_, places, variant, engine) => {
    const box = new Box()
    const failed = new Set(places.map(([rung, where]) => placeKey({ variant: rung, engine: where })))
    const lost = { request: routeRequest(), route: box.send(), failed, cause: 'failure' as const }
    expect(nextRoute(box.facts, lost)).toMatchObject({ kind: 'serve', route: { variant, engine } })
  })

  it('does not move a request that forbids it while another engine is left', () => {
    const box = new Box()
    const failed = new Set([placeKey({ variant: 'm:fp16', engine: 0 })])
    const request = routeRequest({ degrade: 'forbid' })
    const lost = { request, route: box.send(), failed, cause: 'failure' as const }
    expect(nextRoute(box.facts, lost)).toMatchObject({ kind: 'serve', route: { variant: 'm:fp16', engine: 1 } })
  })

  it('is left when it fails at both', () => {
    const box = new Box()
    box.break()
    box.break()
    expect(at(box.send())).toEqual(['m:int4', 0, false])
    expect(box.breakers).toEqual(['m:fp16@one open', 'm:fp16@two open'])
    expect(box.moves).toEqual(['m:fp16 m:int4'])
  })

  it('has a breaker for each device before it was ever loaded', () => {
    const box = new Box()
    box.told = { one: { state: VariantState.UNLOADED, loadable: true, device: '' } }
    box.told.two = { ...box.told.one, room: ['n:int4'] }
    box.break()
    expect(box.breakers).toEqual(['m:fp16@one open'])
    expect(at(box.send())).toEqual(['m:fp16', 1, false])
  })
})

it.each<[string, RungSketch, RungSketch]>([
  ['well before half open', 'ready', 'half_open'],
  ['on its way before half open', 'loading', 'half_open'],
  ['half open before waiting for memory', 'half_open', 'queueable'],
  ['half open before what failed', 'half_open', 'failed'],
  ['waiting for memory before open', 'queueable', 'open'],
])('the engine that serves a rung: %s', (_, better, worse) => {
  const rungAt = (sketch: RungSketch, engine: number) => {
    const [rung] = modelFacts('m', [sketch, 'ready', 'ready']).variants
    if (!rung) throw new Error('the model has a rung')
    return { ...rung, engine }
  }
  const [good, bad] = [rungAt(better, 0), rungAt(worse, 1)]
  for (const places of [[good, bad] as const, [bad, good] as const]) {
    const best = bestPlace([...places])
    expect([best.engine, best.elsewhere.map(({ engine }) => engine)]).toEqual([0, [1]])
  }
})
