import { pino } from 'pino'
import { Registry } from 'prom-client'
import { expect, it } from 'vitest'
import type { ModelFacts, MoveCause } from '../../gateway/router/facts.js'
import { reportHealth } from '../../gateway/health.js'
import { RouteTelemetry } from '../../gateway/router/telemetry.js'
import { RungWatch } from '../../gateway/router/watch.js'
import { modelFacts, type RungSketch } from '../support/router-facts.js'

/** A box of one model whose metrics and log lines the test reads. */
class Box {
  now = 0
  rungs: [RungSketch, RungSketch, RungSketch] = ['ready', 'ready', 'ready']
  readonly lines: Record<string, unknown>[] = []
  readonly registry = new Registry()
  private readonly telemetry: RouteTelemetry
  readonly watch: RungWatch

  constructor(readonly policy: Partial<ModelFacts['policy']>) {
    const log = pino({ base: null }, { write: (line: string) => this.lines.push(JSON.parse(line)) })
    this.telemetry = new RouteTelemetry(this.registry, log)
    this.watch = new RungWatch(() => this.now, this.telemetry)
    this.telemetry.watch(this.registry, () => [this.facts])
  }

  get facts(): ModelFacts {
    return this.watch.mark(modelFacts('m', this.rungs, { policy: this.policy }))
  }

  /** Lets so many milliseconds pass, looking every tenth of a second. */
  wait(ms: number): void {
    for (let left = ms; left > 0; left -= 100) {
      this.now += 100
      void this.facts
    }
  }

  fail(cause: MoveCause): void {
    for (let i = 0; i < 3; i++) {
      this.watch.failed({ variant: 'm:fp16', engine: 0 }, cause)
      this.now += 200
    }
    void this.facts
  }

  /** Exported samples whose name begins so. */
  async samples(name: string): Promise<string[]> {
    const text = await this.registry.metrics()
    return text.split('\n').filter((line) => line.startsWith(name) && !line.endsWith(' 0'))
  }
}

it('counts moves, breakers and their causes, also that a rung kept missing deadlines', async () => {
  const box = new Box({ recover_after: 1000, min_dwell: 1000 })
  void box.facts
  box.fail('deadline')
  expect(box.facts.level).toBe('m:int8')
  expect(await box.samples('edgeshift_moves_total')).toEqual([
    'edgeshift_moves_total{model="m",from="m:fp16",to="m:int8",cause="deadline"} 1',
  ])
  expect(await box.samples('edgeshift_breaker_trips_total')).toEqual([
    'edgeshift_breaker_trips_total{variant="m:fp16",device="cpu0",cause="deadline"} 1',
  ])
  expect(await box.samples('edgeshift_breaker_state')).toEqual([
    'edgeshift_breaker_state{variant="m:fp16",device="cpu0"} 2',
  ])
  box.wait(1500)
  expect(await box.samples('edgeshift_breaker_state')).toEqual([
    'edgeshift_breaker_state{variant="m:fp16",device="cpu0"} 1',
  ])
})

it('exports the breaker of each device that has a rung', async () => {
  const box = new Box({})
  const [fp16] = box.facts.variants
  if (!fp16) throw new Error('the model has a rung')
  box.rungs = [{ elsewhere: [{ ...fp16, engine: 1, device: 'cpu1' }] }, 'ready', 'ready']
  void box.facts
  box.fail('failure')
  expect(await box.samples('edgeshift_breaker_state')).toEqual([
    'edgeshift_breaker_state{variant="m:fp16",device="cpu0"} 2',
  ])
  expect(await box.registry.metrics()).toContain('edgeshift_breaker_state{variant="m:fp16",device="cpu1"} 0')
})

it('raises an alarm, as a metric, in the log and in health, for a model that flaps, which stays down', async () => {
  const box = new Box({ recover_after: 1000, min_dwell: 1000 })
  void box.facts
  for (let fall = 0; fall < 4; fall++) {
    expect(await box.samples('edgeshift_ladder_flapping')).toEqual([])
    box.rungs = ['unloaded', 'ready', 'ready']
    box.wait(200)
    box.rungs = ['ready', 'ready', 'ready']
    box.wait(3000)
  }
  expect(await box.samples('edgeshift_ladder_flapping')).toEqual(['edgeshift_ladder_flapping{model="m"} 1'])
  expect(box.facts.level).toBe('m:int8')
  expect(box.lines.filter(({ msg }) => msg === 'model moves to and fro; it stays down')).toMatchObject([
    { level: 50, model: 'm', variant: 'm:int8' },
  ])
  const health = reportHealth({ models: [box.facts], engineUp: true, draining: false, config: [] })
  expect(health).toMatchObject({ status: 'degraded', alarms: ["'m' moves to and fro; it stays at m:int8"] })
  const [recoveries] = await box.samples('edgeshift_moves_total{model="m",from="m:int8"')
  expect(recoveries).toBe('edgeshift_moves_total{model="m",from="m:int8",to="m:fp16",cause="recovered"} 3')
})
