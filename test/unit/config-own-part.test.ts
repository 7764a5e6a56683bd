import { expect, test } from 'vitest'
import { ownPart, parseConfig } from '../../engine/config/index.js'

const config = parseConfig(
  `
server: { cache_dir: /cache, cache_gb: 10 }
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
  expect([...ownPart(config, 'one').elsewhere]).toEqual(['b', 'c'])
  expect([...ownPart(config, 'two').elsewhere]).toEqual(['a', 'd', 'e'])
})

test('an engine has its device and its part of the folder of repacked files', () => {
  const { devices, models, server } = ownPart(config, 'two').config
  expect(devices.map(({ id }) => id)).toEqual(['two'])
  expect(models).toEqual(config.models)
  expect(server).toEqual({ ...config.server, cache_dir: '/cache/two', cache_gb: 5 })
})
