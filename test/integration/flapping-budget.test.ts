/**
 * A budget that grows and shrinks 1,000 times under requests, router and engine together: everybody is answered, and what
 * comes and goes is loaded a bounded number of times, whatever form the requests have.
 */
import { afterEach, describe, expect, it } from 'vitest'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { type Config, parseConfig } from '../../engine/config/index.js'
import { engineStatus } from '../../engine/server/status.js'
import { mergeStatus } from '../../gateway/engine-client/merge-status.js'
import { toModelFacts } from '../../gateway/model-facts.js'
import { decideRoute } from '../../gateway/router/decide.js'
import type { ModelFacts, RouteRequest } from '../../gateway/router/facts.js'
import { RungWatch } from '../../gateway/router/watch.js'
import { engineInProcess, type InProcessEngine, tinyModel } from '../support/engine-in-process.js'
import { routeRequest } from '../support/router-facts.js'
import { withChanges, withLoads } from '../support/wrapped-native.js'

const MB = 1e6
/** What each rung claims to take, so that a budget can hold int4 alone. */
const WEIGHTS = { fp16: 300 * MB, int8: 150 * MB, int4: 60 * MB }
const SMALL_GB = 0.2
const LARGE_GB = 1

const file = JSON.stringify(tinyModel('f16'))
const yaml = (gigabytes: number): string => `
devices: [{ id: cpu0, kind: cpu, threads: 1, memory_gb: ${gigabytes} }]
scheduler: { max_num_batched_tokens: 64 }
models:
  - id: m
    max_model_len: 128
    variants: [{ precision: fp16, path: ${file} }, { precision: int8, from: fp16 }, { precision: int4, from: fp16 }]
`
const config = (gigabytes: number): Config => parseConfig(yaml(gigabytes), 'models.yaml')

const ASKED: readonly Partial<RouteRequest>[] = [
  {},
  { model: 'm:fp16' },
  { precision: 'high' },
  { model: 'auto' },
  { model: 'm:int8' },
  { speedPriority: 0.2 },
]

/** The gateway's side of routing with a clock that the test sets, over an engine in this process. */
class Box {
  now = 0
  readonly moves: string[] = []
  private readonly watch = new RungWatch(() => this.now, {
    onMove: ({ from, to, cause }) => this.moves.push(`${from}>${to} ${cause}`),
    onBreaker: () => {},
  })

  constructor(readonly engine: InProcessEngine) {}

  static async open(): Promise<Box> {
    const engine = engineInProcess(yaml(LARGE_GB), (native) =>
      withLoads(native, async (request, packed) => {
        const model = await native.loadModel(request, packed)
        return withChanges(model, { weightBytes: WEIGHTS[request.precision] })
      }),
    )
    for (const { known } of engine.residency.managed.values()) known.demand.weightBytes = WEIGHTS[known.precision]
    await engine.settled()
    return new Box(engine)
  }

  get loads(): number {
    return [...this.engine.engine.variants.values()].reduce((sum, { loads }) => sum + loads, 0)
  }

  get facts(): ModelFacts {
    const snapshot = { state: 'up' as const, offers: mergeStatus([engineStatus(this.engine.engine)], false)?.offers }
    const [model] = config(SMALL_GB).models
    if (!model) throw new Error('the configuration has a model')
    return this.watch.mark(toModelFacts(model, snapshot, 0))
  }

  /** The budget changes and stays for a while, in which requests of every form come one after the other. */
  async hold(gigabytes: number, seconds: number, asked: Partial<RouteRequest>): Promise<string> {
    this.engine.reloader.apply(config(gigabytes))
    await this.engine.settled()
    for (let passed = 0; passed < seconds; passed += 10) {
      this.now += 10_000
      void this.facts
    }
    const result = decideRoute(routeRequest(asked), [this.facts])
    if (result.kind !== 'serve') return `${result.kind} ${JSON.stringify(result)}`
    const { end } = await this.engine.ask(result.route.variant, [1, 2, 3], { maxTokens: 2 })
    return FinishReason[end.finishReason]
  }
}

const open: Box[] = []
afterEach(async () => {
  for (const { engine } of open.splice(0)) await engine.close()
})

async function flap(upSeconds: number, downSeconds: number): Promise<{ box: Box; loads: number; ends: Set<string> }> {
  const box = await Box.open()
  open.push(box)
  const before = box.loads
  const ends = new Set<string>()
  for (let move = 0; move < 1000; move++) {
    const asked = ASKED[(move >> 1) % ASKED.length] ?? {}
    const isUp = move % 2 === 1
    ends.add(await box.hold(isUp ? LARGE_GB : SMALL_GB, isUp ? upSeconds : downSeconds, asked))
    for (const { device } of Array.from(box.engine.residency.slots.values(), (slot) => slot.open)) {
      expect(device.ledger.freeBytes).toBeGreaterThanOrEqual(0)
    }
  }
  return { box, loads: box.loads - before, ends }
}

describe('1,000 moves of a budget that holds all or int4 alone', { timeout: 120_000 }, () => {
  it.each([
    ['faster than the ladder comes back', 5, 5],
    ['slower, so that it falls again and again until it counts as flapping', 200, 10],
  ])('%s: every request is answered, and few loads', async (_, upSeconds, downSeconds) => {
    const { box, loads, ends } = await flap(upSeconds, downSeconds)
    console.log(`up ${upSeconds} s, down ${downSeconds} s: ${loads} loads, ${box.moves.length} moves of the ladder`)
    expect(ends).toEqual(new Set(['LENGTH']))
    expect(box.moves.length).toBeLessThanOrEqual(8)
    // Each move of the ladder may load the rung it leads to, and the other two on the way.
    expect(loads).toBeLessThanOrEqual(3 * (box.moves.length + 1))
  })
})
