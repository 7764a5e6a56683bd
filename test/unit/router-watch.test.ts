import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decideRoute } from '../../gateway/router/decide.js'
import type { ModelFacts } from '../../gateway/router/facts.js'
import { type MoveRecord, RungWatch } from '../../gateway/router/watch.js'
import { modelFacts, routeRequest, type RungSketch } from '../support/router-facts.js'

type Rungs = [RungSketch, RungSketch, RungSketch]

const SECOND = 1000

const at = (rung: string, engine = 0) => ({ variant: `m:${rung}`, engine })

/** A box whose time and rungs the test sets. */
class Box {
  now = 0
  rungs: Rungs = ['ready', 'ready', 'ready']
  readonly moves: MoveRecord[] = []
  readonly breakers: string[] = []
  readonly watch = new RungWatch(() => this.now, {
    onMove: (move) => this.moves.push(move),
    onBreaker: (variant, device, state) => this.breakers.push(`${variant}@${device} ${state}`),
  })

  constructor(readonly policy: Partial<ModelFacts['policy']> = {}) {}

  get facts(): ModelFacts {
    return this.watch.mark(modelFacts('m', this.rungs, { policy: this.policy }))
  }

  /** Lets `seconds` pass, looking every `step`. */
  wait(seconds: number, step = 1): this {
    for (let left = seconds; left > 0; left -= step) {
      this.now += Math.min(left, step) * SECOND
      void this.facts
    }
    return this
  }

  set(...rungs: Rungs): this {
    this.rungs = rungs
    void this.facts
    return this
  }

  fail(rung: string, times = 3): this {
    for (let i = 0; i < times; i++) {
      this.now += 200
      this.watch.failed(at(rung), 'failure')
    }
    void this.facts
    return this
  }

  /** What a request gets now: "int8 code"; a probe is sent on its way. */
  serve(model = 'm'): string {
    const result = decideRoute(routeRequest({ model }), [this.facts])
    if (result.kind !== 'serve') return result.kind
    if (result.route.probe) this.watch.probing(result.route)
    return `${result.route.variant.split(':')[1]} ${result.route.code}`
  }

  get story(): string[] {
    return this.moves.map(({ from, to, cause }) => `${from.split(':')[1]}>${to.split(':')[1]} ${cause}`)
  }
}

describe('memory', () => {
  it('that does not hold the best rung moves it down at once and up after health and dwell', () => {
    const box = new Box()
    box.set('unloaded', 'unloaded', 'ready')
    expect(box.serve()).toBe('int4 degraded_oom')
    expect(box.serve('m:fp16')).toBe('int4 degraded_oom')
    box.wait(100).set('loadable', 'unloaded', 'ready')
    expect([box.serve(), box.serve('m:fp16')]).toEqual(['int4 recovering', 'int4 recovering'])
    expect(box.wait(59).serve()).toBe('int4 recovering')
    expect([box.wait(2).serve(), box.serve('m:fp16')]).toEqual(['fp16 highest', 'fp16 requested'])
    expect(box.story).toEqual(['fp16>int4 oom', 'int4>fp16 recovered'])
  })

  it('is not left before the dwell is over, however healthy the better rung is', () => {
    const box = new Box({ recover_after: 0 })
    box.set('unloaded', 'ready', 'ready').set('ready', 'ready', 'ready')
    expect(box.wait(119).serve()).toBe('int8 recovering')
    expect(box.wait(1).serve()).toBe('fp16 highest')
  })

  it('that others use is waited for a moment, then the rung is left', () => {
    const box = new Box()
    box.set('queueable', 'ready', 'ready').wait(1)
    expect(box.serve()).toBe('int8 degraded_pressure')
    expect(box.story).toEqual([])
    box.wait(1)
    expect(box.story).toEqual(['fp16>int8 pressure'])
  })

  it('that comes and goes gives a bounded number of moves, and loads', () => {
    const flap = (upSeconds: number, downSeconds: number): Box => {
      const box = new Box()
      for (let i = 0; i < 1000; i++) {
        box.set('unloaded', 'unloaded', 'ready').wait(downSeconds, 10)
        box.set('loadable', 'unloaded', 'ready').wait(upSeconds, 10)
      }
      return box
    }
    expect(flap(5, 5).story).toEqual(['fp16>int4 oom'])
    const slow = flap(200, 10)
    expect(slow.moves.length).toBeLessThanOrEqual(8)
    expect(slow.moves.filter(({ alarm }) => alarm)).toHaveLength(1)
    expect(slow.facts).toMatchObject({ level: 'm:int4', flapping: true })
  })

  it('that has come back for good ends the alarm', () => {
    const box = new Box()
    for (let i = 0; i < 10; i++) {
      box.set('unloaded', 'ready', 'ready').wait(10)
      box.set('ready', 'ready', 'ready').wait(200)
    }
    expect(box.facts).toMatchObject({ level: 'm:int8', flapping: true })
    expect(box.wait(1700).facts).toMatchObject({ level: 'm:fp16', flapping: false })
  })

  it('is not a reason to move while the engine starts', () => {
    const box = new Box().set('loading', 'loading', 'loading').wait(5).set('ready', 'loading', 'loading')
    expect(box.serve()).toBe('fp16 highest')
    expect(box.set('loading', 'loading', 'ready').serve()).toBe('int4 loading')
    expect(box.story).toEqual([])
  })
})

describe('failures', () => {
  it('open the breaker, move the model to the next rung, and a probe brings it back', () => {
    const box = new Box()
    box.set('ready', 'ready', 'ready').fail('fp16', 2)
    expect(box.serve()).toBe('fp16 highest')
    box.fail('fp16', 1)
    expect(box.serve()).toBe('int8 degraded_failure')
    expect(box.serve('m:fp16')).toBe('int8 degraded_failure')
    expect(box.wait(59).serve()).toBe('int8 degraded_failure')
    expect(box.wait(1).serve()).toBe('fp16 probe')
    expect(box.serve()).toBe('int8 degraded_failure')
    box.watch.succeeded(at('fp16'), true)
    expect(box.serve()).toBe('int8 recovering')
    expect(box.wait(60).serve()).toBe('fp16 highest')
    expect(box.breakers).toEqual(['m:fp16@cpu0 open', 'm:fp16@cpu0 closed'])
    expect(box.story).toEqual(['fp16>int8 failure', 'int8>fp16 recovered'])
  })

  it('of the worst rung move the model up, where no other serves', () => {
    const box = new Box()
    box.set('loadable', 'unloaded', 'ready').set('unloaded', 'unloaded', 'ready')
    box.wait(1).set('loadable', 'unloaded', 'ready').fail('int4')
    expect(box.serve()).toBe('fp16 highest')
    expect(box.story).toEqual(['fp16>int4 oom', 'int4>fp16 failure'])
  })

  it('that come together are one', () => {
    const box = new Box().set('ready', 'ready', 'ready')
    for (let i = 0; i < 100; i++) box.watch.failed(at('fp16'), 'failure')
    expect(box.serve()).toBe('fp16 highest')
  })

  it('count although somebody looks before they are told, while the engine is down', () => {
    const box = new Box()
    const away: RungSketch = { state: 'loading', device: '', told: false }
    for (let crash = 0; crash < 3; crash++) {
      box.now += 5 * SECOND
      box.set('ready', 'ready', 'ready').set(away, away, away)
      box.watch.failed(at('fp16'), 'failure')
      // The engine comes back: nobody is told that the rung is out.
      expect(box.facts.variants.map(({ breaker }) => breaker.state)).toEqual(['closed', 'closed', 'closed'])
    }
    expect(box.breakers).toEqual(['m:fp16@cpu0 open'])
    expect(box.set('ready', 'ready', 'ready').serve()).toBe('int8 degraded_failure')
  })

  it('of loads count where the engine has several devices and names none before it has loaded', () => {
    const box = new Box().set('ready', 'ready', 'ready')
    box.set({ state: 'unloaded', loadable: true, device: '' }, 'ready', 'ready').fail('fp16')
    expect(box.breakers).toEqual(['m:fp16@ open'])
    expect(box.serve()).toBe('int8 degraded_failure')
  })

  it('do not move a model whose policy forbids it', () => {
    const box = new Box({ degrade_on: ['oom'] }).set('ready', 'ready', 'ready').fail('fp16')
    expect(box.serve()).toBe('refuse')
    expect(box.story).toEqual([])
  })

  it('never lead below min_precision', () => {
    const box = new Box({ min_precision: 'int8' }).set('ready', 'ready', 'ready').fail('fp16').fail('int8')
    expect(box.story).toEqual(['fp16>int8 failure'])
    expect(box.serve()).toBe('refuse')
  })
})

describe('any course of events', () => {
  const state = fc.constantFrom<RungSketch>('ready', 'loadable', 'unloaded', 'queueable', 'failed', 'loading')
  const event = fc.oneof(
    fc.tuple(state, state, state).map((rungs) => (box: Box) => box.set(...rungs)),
    fc.constantFrom('fp16', 'int8', 'int4').map((rung) => (box: Box) => box.fail(rung)),
    fc.integer({ min: 1, max: 300 }).map((seconds) => (box: Box) => box.wait(seconds, 10)),
    fc.constantFrom('fp16', 'int8', 'int4').map((rung) => (box: Box) => {
      box.watch.succeeded(at(rung), true)
      return box
    }),
  )

  it('leaves the model on an allowed rung, with a dwell between two moves up', () => {
    fc.assert(
      fc.property(fc.array(event, { maxLength: 30 }), (events) => {
        const box = new Box({ min_precision: 'int8' })
        const ups: number[] = []
        for (const happen of events) {
          const before = box.moves.length
          happen(box)
          for (const { cause } of box.moves.slice(before)) if (cause === 'recovered') ups.push(box.now)
          expect(['m:fp16', 'm:int8']).toContain(box.facts.level)
        }
        const gaps = ups.slice(1).map((time, i) => time - (ups[i] ?? 0))
        expect(gaps.filter((gap) => gap < 120 * SECOND)).toEqual([])
      }),
      { numRuns: 150 },
    )
  })
})
