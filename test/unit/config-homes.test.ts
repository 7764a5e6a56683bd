import { expect, test } from 'vitest'
import { modelsElsewhere, parseConfig } from '../../engine/config/index.js'

const config = parseConfig(
  `
devices: [{ id: one, kind: cpu }, { id: two, kind: cpu }]
models:
  - { id: a, variants: [{ precision: fp16, path: x }] }
  - { id: b, variants: [{ precision: fp16, path: x }] }
  - { id: c, variants: [{ precision: fp16, path: x }], placement: { devices: [two, one] } }
  - { id: d, variants: [{ precision: fp16, path: x }], placement: { devices: [one] } }
  - { id: e, variants: [{ precision: fp16, path: x }] }
`,
  'models.yaml',
)

test('each model is loaded at the start by one engine: that of its first device, or by turns', () => {
  expect([...modelsElsewhere(config, 'one')]).toEqual(['b', 'c'])
  expect([...modelsElsewhere(config, 'two')]).toEqual(['a', 'd', 'e'])
})
