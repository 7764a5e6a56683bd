import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { loadConfig } from '../../engine/config/index.js'
import { fields, pageText, schemaText } from '../../scripts/config-docs.js'

const shipped = new URL('../../models.yaml', import.meta.url)
const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')

test('docs/models.schema.json and docs/configuration.md are up to date (npm run generate)', () => {
  expect(read('docs/models.schema.json')).toBe(schemaText())
  expect(read('docs/configuration.md')).toBe(pageText(read('docs/configuration.md')))
})

test('every key is described', () => {
  expect(fields().filter(({ schema }) => !schema.description)).toEqual([])
})

test('every key of the schema stands in the shipped file, in use or commented', () => {
  const text = readFileSync(shipped, 'utf8')
  const missing = fields()
    .map(({ path }) => path.slice(path.lastIndexOf('.') + 1))
    .filter((key) => !new RegExp(`^[\\s#-]*${key}:`, 'm').test(text))
  expect(missing).toEqual([])
})

test('the commented keys of the shipped file are valid too', async () => {
  const text = readFileSync(shipped, 'utf8')
  const { parseConfig } = await import('../../engine/config/index.js')
  const all = text.replaceAll(/^( *)# ( *(?:- )?[a-z_]+:.*)$/gm, '$1$2').replace(/^ *yaml-language-server.*$/m, '')
  expect(parseConfig(all, '/etc/models.yaml').server.api_keys_file).toBe('/etc/keys.yaml')
})

test('the shipped file serves smollm2 from the embedded file with three rungs', () => {
  const config = loadConfig(new URL(shipped).pathname)
  expect(config.server).toMatchObject({
    http: { host: '127.0.0.1', port: 8080 },
    grpc: { host: '127.0.0.1', port: 8081 },
  })
  expect(config.devices).toEqual([])
  const [model] = config.models
  expect(model).toMatchObject({ id: 'smollm2', tags: ['chat', 'default'] })
  expect(model?.variants.map(({ precision, from }) => [precision, from])).toEqual([
    ['fp16', undefined],
    ['int8', 'fp16'],
    ['int4', 'fp16'],
  ])
  const file = new URL('../../models/smollm2-135m-instruct-q4_1.gguf', import.meta.url).pathname
  expect(model?.variants.every(({ path }) => path === file)).toBe(true)
})
