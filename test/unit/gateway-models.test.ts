import { expect, test } from 'vitest'
import { parseConfig } from '../../engine/config/index.js'
import type { EngineSnapshot } from '../../gateway/model-facts.js'
import { Models } from '../../gateway/models.js'
import { RungMeter } from '../../gateway/router/meter.js'
import { RungWatch } from '../../gateway/router/watch.js'
import { encodeModel } from '../../gateway/protocols/grpc/encode.js'
import { encodeModelNamed } from '../../gateway/protocols/openai/models.js'
import { EngineStatus, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'

const { models: configs } = parseConfig(
  'models: [{ id: m, variants: [{ path: x }, { path: y }] }, { id: n, variants: [{ precision: int4, path: z }] }]',
  'models.yaml',
)
const modelsOf = (snapshot: EngineSnapshot) =>
  new Models(
    configs,
    () => Promise.reject(new Error('no text here')),
    () => snapshot,
    {
      watch: new RungWatch(() => 0, { onMove: () => undefined, onBreaker: () => undefined }),
      meter: new RungMeter(),
      now: () => 0,
    },
  )
const rungs = (snapshot: EngineSnapshot) => {
  const models = modelsOf(snapshot)
  return models.list().map(({ variants }) => variants.map(({ name, state }) => `${name} ${state}`))
}

test('rungs whose precision is read from files: one to wait for, then those that the engine has read', () => {
  expect(rungs({ state: 'starting', status: undefined })).toEqual([['m:fp16 loading'], ['n:int4 loading']])
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
  expect(rungs({ state: 'up', status })).toEqual([['m:int8 ready', 'm:int4 failed'], ['n:int4 loading']])
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
  const models = modelsOf({ state: 'up', status })
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
