import { expect, test } from 'vitest'
import { parseConfig } from '../../engine/config/index.js'
import type { EngineSnapshot } from '../../gateway/model-facts.js'
import { Models } from '../../gateway/models.js'
import { RungMeter } from '../../gateway/router/meter.js'
import { RungWatch } from '../../gateway/router/watch.js'
import { EngineStatus, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'

const { models: configs } = parseConfig(
  'models: [{ id: m, variants: [{ path: x }, { path: y }] }, { id: n, variants: [{ precision: int4, path: z }] }]',
  'models.yaml',
)
const rungs = (snapshot: EngineSnapshot) => {
  const models = new Models(
    configs,
    () => Promise.reject(new Error('no text here')),
    () => snapshot,
    {
      watch: new RungWatch(() => 0, { onMove: () => undefined, onBreaker: () => undefined }),
      meter: new RungMeter(),
      now: () => 0,
    },
  )
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
