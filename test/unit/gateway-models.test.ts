import { EventEmitter } from 'node:events'
import { status as grpcStatus } from '@grpc/grpc-js'
import { describe, expect, it, test } from 'vitest'
import { parseConfig } from '../../engine/config/index.js'
import { mergeStatus } from '../../gateway/engine-client/merge-status.js'
import type { EngineSnapshot } from '../../gateway/model-facts.js'
import { type ConfiguredModels, Models, type TextLoader } from '../../gateway/models.js'
import { RungMeter } from '../../gateway/router/meter.js'
import { RungWatch } from '../../gateway/router/watch.js'
import type { TextModel } from '../../gateway/text/types.js'
import { encodeModel } from '../../gateway/protocols/grpc/encode.js'
import { encodeModelNamed } from '../../gateway/protocols/openai/models.js'
import { type EngineClient, EngineStatus, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { routeRequest } from '../support/router-facts.js'
import { Turn } from '../support/turn.js'

const config = parseConfig(
  'models: [{ id: m, variants: [{ path: x }, { path: y }] }, { id: n, variants: [{ precision: int4, path: z }] }]',
  'models.yaml',
)
const newWatch = (now: () => number) => new RungWatch(now, { onMove: () => undefined, onBreaker: () => undefined })
const noText: TextLoader = () => Promise.reject(new Error('no text here'))
const modelsOf = (
  snapshot: EngineSnapshot,
  configured: ConfiguredModels = config,
  load = noText,
  now = () => 0,
  watch = newWatch(now),
) => new Models(configured, load, () => snapshot, { watch, meter: new RungMeter(), now })
const rungs = (snapshot: EngineSnapshot) => {
  const models = modelsOf(snapshot)
  return models.list().map(({ variants }) => variants.map(({ name, state }) => `${name} ${state}`))
}

test('rungs whose precision is read from files: one to wait for, then those that the engine has read', () => {
  expect(rungs({ state: 'starting', offers: undefined })).toEqual([['m:fp16 loading'], ['n:int4 loading']])
  const variant = (model: string, precision: string, state: VariantState) => ({
    name: `${model}:${precision}`,
    model,
    precision,
    state,
  })
  const status = EngineStatus.fromPartial({
    variants: [
      variant('m', 'int8', VariantState.READY),
      variant('m', 'int4', VariantState.FAILED),
      variant('n', 'int4', VariantState.LOADING),
    ],
  })
  expect(rungs({ state: 'up', offers: mergeStatus([status], false)?.offers })).toEqual([
    ['m:int8 ready', 'm:int4 failed'],
    ['n:int4 loading'],
  ])
})

test('a probe that was not sent leaves its place to the next request', () => {
  const status = EngineStatus.fromPartial({
    variants: [{ name: 'n:int4', model: 'n', precision: 'int4', state: VariantState.READY }],
  })
  let now = 0
  const watch = newWatch(() => now)
  const offers = mergeStatus([status], false)?.offers
  const models = modelsOf({ state: 'up', offers }, config, noText, () => now, watch)
  const ask = () => {
    now += 1000
    const result = models.route(routeRequest({ model: 'n' }))
    return result.kind === 'serve' ? result.route : undefined
  }
  for (let i = 0; i < 3; i++) {
    const route = ask()
    if (route) watch.failed(route, 'failure')
  }
  expect(ask()).toBeUndefined()
  now += 60_000
  const probe = ask()
  expect([probe?.probe, ask()]).toEqual([true, undefined])
  if (probe) models.unsent(probe)
  expect(ask()?.probe).toBe(true)
})

test('what rounding took and what was measured reach the list of models and the router', () => {
  const derivation = { method: 'round_to_nearest', groupSize: 32, relativeError: 0.0719 }
  const quality = { perplexity: 20, referencePerplexity: 19, text: 'a text' }
  const status = EngineStatus.fromPartial({
    variants: [
      { name: 'n:int4', model: 'n', precision: 'int4', state: VariantState.READY, derivation, quality },
      { name: 'm:fp16', model: 'm', precision: 'fp16', state: VariantState.READY },
    ],
  })
  const models = modelsOf({ state: 'up', offers: mergeStatus([status], false)?.offers })
  expect(models.find('n').variants[0]?.quality).toBe(0.95)
  expect(encodeModelNamed(models, 'n')).toMatchObject({
    variants: [
      {
        derivation: { method: 'round_to_nearest', group_size: 32, relative_error: 0.0719 },
        quality: 0.95,
        measured_quality: { perplexity: 20, reference_perplexity: 19, text: 'a text' },
      },
    ],
  })
  expect(encodeModel(models.find('n')).variants).toMatchObject([{ derivation, quality }])
  expect(JSON.stringify(encodeModelNamed(models, 'm'))).not.toMatch(/derivation|measured/)
})

describe('loadTexts', () => {
  const edit = (path: string): ConfiguredModels =>
    parseConfig(`models: [{ id: m, variants: [{ precision: int4, path: ${path} }] }]`, 'models.yaml')
  const ready = { name: 'm:int4', model: 'm', precision: 'int4', state: VariantState.READY }
  const status = EngineStatus.fromPartial({ variants: [ready] })
  const snapshot: EngineSnapshot = { state: 'up', offers: mergeStatus([status], false)?.offers }

  /** An engine that has taken the given edit; its only text file holds the edit's digest. */
  function engineWith(inUse: () => ConfiguredModels): EngineClient {
    const getModelAssets = ({ configDigest }: { configDigest: string }): object => {
      const { digest } = inUse()
      const call = Object.assign(new EventEmitter(), { cancel: () => undefined })
      setImmediate(() => {
        if (configDigest !== digest) return call.emit('error', Object.assign(new Error(), { code: grpcStatus.ABORTED }))
        call.emit('data', { name: 'tokenizer.json', data: Buffer.from(digest) })
        return call.emit('end')
      })
      return call
    }
    return { getModelAssets } as unknown as EngineClient
  }

  /** A text side that is built when the test says so, and what became of it. */
  class Building {
    readonly made = new Turn()
    closed = false
    constructor(readonly digest: string) {}
    readonly text = { close: async () => void (this.closed = true) } as unknown as TextModel
  }

  it("keeps the text of the last of two edits, however long the first one's takes", async () => {
    const [first, last] = [edit('first'), edit('last')]
    const buildings: Building[] = []
    const begun = [new Turn(), new Turn()]
    const models = modelsOf(snapshot, first, async ([file]) => {
      const building = new Building(String(file?.data))
      begun[buildings.push(building) - 1]?.reach()
      await building.made.reached
      return building.text
    })
    let inUse = first
    const client = engineWith(() => inUse)
    const earlier = models.loadTexts(client)
    await begun[0]?.reached
    inUse = last
    await models.update(last)
    const later = models.loadTexts(client)
    buildings[0]?.made.reach()
    await begun[1]?.reached
    buildings[1]?.made.reach()
    await Promise.all([earlier, later])
    expect(buildings.map(({ digest }) => digest)).toEqual([first.digest, last.digest])
    expect(models.textOf('m')).toBe(buildings[1]?.text)
    expect(buildings.map(({ closed }) => closed)).toEqual([true, false])
  })

  it('takes no text from an engine with another edit, which is no failure of the engine', async () => {
    const text = new Building('').text
    const models = modelsOf(snapshot, edit('first'), async () => text)
    let inUse = edit('other')
    const client = engineWith(() => inUse)
    await models.loadTexts(client)
    expect(models.textOf('m')).toBeUndefined()
    inUse = edit('first')
    await models.loadTexts(client)
    expect(models.textOf('m')).toBe(text)
  })
})
