import { describe, expect, it } from 'vitest'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { GatewayError } from '../../gateway/errors.js'
import type { RunRecord } from '../../gateway/generate/observer.js'
import { decideRoute } from '../../gateway/router/decide.js'
import type { ModelFacts, Route } from '../../gateway/router/facts.js'
import { RouteFeedback } from '../../gateway/router/feedback.js'
import { RungMeter } from '../../gateway/router/meter.js'
import { RouteTelemetry } from '../../gateway/router/telemetry.js'
import { RungWatch } from '../../gateway/router/watch.js'
import { requestOf } from '../support/fake-pipeline.js'
import { modelFacts, routeRequest } from '../support/router-facts.js'

const SILENT = {
  onArrival: () => undefined,
  onSubmit: () => undefined,
  onFirstToken: () => undefined,
  onTokens: () => undefined,
  onLost: () => undefined,
  onFailover: () => undefined,
  onEnd: () => undefined,
}

/** A router that hears of requests as the pipeline tells them. */
class Heard {
  now = 0
  /** A second engine has every rung, too. */
  elsewhere = false
  readonly registry = new Registry()
  readonly telemetry = new RouteTelemetry(this.registry, pino({ level: 'silent' }))
  readonly watch = new RungWatch(() => this.now, this.telemetry)
  readonly meter = new RungMeter()
  readonly feedback = new RouteFeedback(this.watch, this.meter, this.telemetry, SILENT)

  get facts(): ModelFacts {
    const facts = modelFacts('m', ['ready', 'ready', 'ready'])
    for (const rung of facts.variants) Object.assign(rung, this.meter.measured(rung))
    if (this.elsewhere) for (const rung of facts.variants) rung.elsewhere = [{ ...rung, engine: 1, device: 'cpu1' }]
    return this.watch.mark(facts)
  }

  /** A request that is sent now. */
  send(): RunRecord {
    this.now += 1000
    const result = decideRoute(routeRequest(), [this.facts])
    if (result.kind !== 'serve') throw new Error(result.kind)
    if (result.route.probe) this.watch.probing(result.route)
    return recordOf(result.route)
  }

  /** A token came where the request was sent. */
  gotToken(record: RunRecord): void {
    this.feedback.onTokens(record, record.route, 1, 10)
  }

  async metric(name: string): Promise<string[]> {
    return (await this.registry.metrics()).split('\n').filter((line) => line.startsWith(`edgeshift_${name}{`))
  }
}

function recordOf(route: Route): RunRecord {
  const usage = { promptTokens: 100, completionTokens: 10, cachedTokens: 20 }
  const times = { arrivedAt: 0, submittedAt: 10, firstTokenAt: -1, endedAt: 1010 }
  return { request: requestOf(), route, ...times, queueUs: 5000, failovers: 0, usage }
}

const deadline = new GatewayError('deadline_exceeded', 'too late')

describe('what requests saw', () => {
  it('moves the model after failed steps, and a probe that gives a token closes the breaker', async () => {
    const heard = new Heard()
    for (let i = 0; i < 3; i++) heard.feedback.onLost(heard.send(), 'rung_failed')
    expect(heard.send().route).toMatchObject({ variant: 'm:int8', code: 'degraded_failure' })
    heard.now += 60_000
    const probe = heard.send()
    expect(probe.route).toMatchObject({ variant: 'm:fp16', code: 'probe', probe: true })
    expect(heard.send().route?.variant).toBe('m:int8')
    heard.feedback.onFirstToken({ ...probe, firstTokenAt: 115 }, probe.route)
    expect(heard.send().route?.code).toBe('recovering')
    expect(await heard.metric('moves_total')).toEqual([
      'edgeshift_moves_total{model="m",from="m:fp16",to="m:int8",cause="failure"} 1',
    ])
    expect(await heard.metric('breaker_trips_total')).toEqual([
      'edgeshift_breaker_trips_total{variant="m:fp16",device="cpu0",cause="failure"} 1',
    ])
  })

  it.each<[string, (heard: Heard, probe: RunRecord) => void]>([
    ['its client goes away', ({ feedback }, probe) => feedback.onEnd(probe, new GatewayError('cancelled', 'gone'))],
    ['it is refused', ({ feedback }, probe) => feedback.onEnd(probe, new GatewayError('poison_request', 'no'))],
    ['it needed no token', ({ feedback }, probe) => feedback.onEnd(probe, undefined)],
    ['the engine dies of something else', ({ feedback }, probe) => feedback.onLost(probe, 'engine_failed')],
  ])('tries again with another request when the probe tells nothing: %s', (_, end) => {
    const heard = new Heard()
    heard.gotToken(heard.send())
    for (let i = 0; i < 3; i++) heard.feedback.onLost(heard.send(), 'rung_failed')
    void heard.facts
    heard.now += 60_000
    end(heard, heard.send())
    expect(heard.send().route).toMatchObject({ variant: 'm:fp16', probe: true })
  })

  it('holds the death of an engine against a rung only before its first token', () => {
    const heard = new Heard()
    // A replay's tokens count too, and it has had its first one before.
    for (let i = 0; i < 9; i++) {
      heard.feedback.onEngineEnd(0)
      heard.gotToken(heard.send())
      heard.feedback.onLost(heard.send(), 'engine_failed')
    }
    expect(heard.send().route?.variant).toBe('m:fp16')
    // One death is one failure, however many requests it takes and however long they take to hear of it.
    for (let i = 0; i < 3; i++) {
      heard.feedback.onEngineEnd(0)
      expect(heard.send().route?.variant).toBe('m:fp16')
      for (let j = 0; j < 9; j++) heard.feedback.onLost(heard.send(), 'engine_failed')
    }
    expect(heard.send().route?.variant).toBe('m:int8')
  })

  it('holds the death of an engine against the rung there, whatever it gave at another', () => {
    const heard = new Heard()
    const there = (): RunRecord => {
      const record = heard.send()
      return { ...record, route: record.route && { ...record.route, engine: 1 } }
    }
    heard.elsewhere = true
    for (let i = 0; i < 3; i++) {
      heard.gotToken(heard.send())
      heard.feedback.onEngineEnd(1)
      heard.feedback.onLost(there(), 'engine_failed')
    }
    const [fp16] = heard.facts.variants
    expect(fp16).toMatchObject({ engine: 0, breaker: { state: 'closed' } })
    expect(fp16?.elsewhere).toMatchObject([{ engine: 1, breaker: { state: 'open' } }])
  })

  it('does not hold against a rung that one request kills the engine again and again', () => {
    const heard = new Heard()
    const poison = heard.send()
    for (let i = 0; i < 9; i++) {
      heard.now += 1000
      heard.feedback.onEngineEnd(0)
      heard.feedback.onLost(poison, 'engine_failed')
    }
    expect(heard.send().route?.variant).toBe('m:fp16')
  })

  it('credits tokens to the rung of their choice, wherever another one was lost', () => {
    const heard = new Heard()
    for (let i = 0; i < 3; i++) heard.feedback.onLost(heard.send(), 'rung_failed')
    heard.now += 60_000
    const probe = heard.send()
    expect(probe.route).toMatchObject({ variant: 'm:fp16', probe: true })
    const int8 = heard.send()
    // One choice is the probe of fp16, but what the record says last is that of the other one.
    const record = { ...int8, firstTokenAt: 115 }
    heard.feedback.onFirstToken(record, probe.route)
    heard.feedback.onTokens(record, probe.route, 2, 100)
    const [best] = heard.facts.variants
    expect(best).toMatchObject({ breaker: { state: 'closed' }, tokensPerSecond: 20, promptTokensPerSecond: 800 })
  })

  it('counts deadlines that pass without a token in long enough a time, and no others', () => {
    const heard = new Heard()
    for (let i = 0; i < 9; i++) heard.feedback.onEnd(heard.send(), deadline)
    for (let i = 0; i < 9; i++) heard.feedback.onEnd({ ...heard.send(), firstTokenAt: 115 }, deadline)
    expect(heard.send().route?.variant).toBe('m:fp16')
    for (let i = 0; i < 3; i++) heard.feedback.onEnd({ ...heard.send(), endedAt: 6000 }, deadline)
    expect(heard.send().route).toMatchObject({ variant: 'm:int8', code: 'degraded_deadline' })
  })

  it('becomes figures: tokens, prompts, queue and loads', () => {
    const heard = new Heard()
    const record = heard.send()
    record.firstTokenAt = 115
    heard.feedback.onFirstToken(record, record.route)
    heard.feedback.onTokens(record, record.route, 2, 100)
    heard.feedback.onEnd(record, undefined)
    const [fp16] = heard.facts.variants
    expect(fp16).toMatchObject({ tokensPerSecond: 20, promptTokensPerSecond: 800, loadMs: 0, waitMs: 0 })
    if (!fp16) return
    expect(heard.meter.measured({ ...fp16, queued: 3, running: 2 }).waitMs).toBe(1500)
    heard.meter.follow({ ...fp16, state: 'loading' }, 0)
    heard.meter.follow(fp16, 1000)
    const unloaded = { ...fp16, state: 'unloaded' } as const
    expect(heard.meter.measured(unloaded).loadMs).toBeCloseTo(2e9 / (1e6 + 0.1 * (2e6 - 1e6)), 3)
  })
})
