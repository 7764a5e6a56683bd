import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { loadConfig } from '../../engine/config/index.js'
import { faults, having, ladder, MODEL, model } from '../support/config-text.js'

const folder = mkdtempSync(join(tmpdir(), 'edgeshift-config-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Writes a file into the test's folder. */
const file = (name: string, content: string | Uint8Array) => {
  writeFileSync(join(folder, name), content)
  return join(folder, name)
}

describe('between values', () => {
  test.each([
    [
      'device twice',
      having('devices: [{ id: a, kind: cpu }, { id: a, kind: cpu }]'),
      '2:39 devices[1].id: device id "a" is used twice',
    ],
    [
      'an engine for each of no devices',
      having('server: { engines: per_device }'),
      '2:20 server.engines: per_device needs a list of devices',
    ],
    [
      'unknown device',
      model('variants: [{precision: fp16, path: x}]', 'placement: { devices: [cpu1] }'),
      '4:28 models[0].placement.devices[0]: no device "cpu1"; did you mean "cpu0"?',
    ],
    [
      'device named twice',
      model('variants: [{precision: fp16, path: x}]', 'placement: { devices: [cpu0, cpu0] }'),
      '4:34 models[0].placement.devices[1]: device "cpu0" is used twice',
    ],
    [
      'tag is an id',
      model('tags: [m]', 'variants: [{precision: fp16, path: x}]'),
      '3:12 models[0].tags[0]: tag "m" is the id of a model',
    ],
    [
      'tag twice',
      model('tags: [a, a]', 'variants: [{precision: fp16, path: x}]'),
      '3:15 models[0].tags[1]: tag "a" already belongs to model "m"',
    ],
    [
      'reserved',
      model('tags: [auto]', 'variants: [{precision: fp16, path: x}]'),
      '3:12 models[0].tags[0]: "auto" is reserved: it lets the router choose',
    ],
    [
      'precision twice',
      ladder('precision: fp16, path: x', 'precision: fp16, path: y'),
      '5:22 models[0].variants[1].precision: fp16 is listed twice',
    ],
    [
      'order',
      ladder('precision: int4, path: x', 'precision: fp16, path: y'),
      '5:22 models[0].variants[1].precision: fp16 stands below a worse rung; the best precision comes first',
    ],
    [
      'from a missing rung',
      ladder('precision: fp16, path: x', 'precision: int4, from: int8'),
      '5:34 models[0].variants[1].from: the ladder has no int8 rung',
    ],
    [
      'from itself',
      ladder('precision: int8, from: int8'),
      '4:34 models[0].variants[0].from: int8 is not better than int8',
    ],
    [
      'from a derived rung',
      ladder('precision: fp16, path: x', 'precision: int8, from: fp16', 'precision: int4, from: int8'),
      '6:34 models[0].variants[2].from: the int8 rung has no file of its own; name one that has a path',
    ],
    [
      'path and from',
      ladder('precision: fp16, path: x', 'precision: int8, path: y, from: fp16'),
      '5:37 models[0].variants[1].from: a rung has either path or from, not both',
    ],
    [
      'neither',
      ladder('precision: fp16'),
      '4:9 models[0].variants[0]: a rung needs a path, or from: the rung it is derived from',
    ],
    [
      'min_precision',
      model('variants: [{precision: fp16, path: x}]', 'policy: { min_precision: int4 }'),
      '4:30 models[0].policy.min_precision: the ladder has no int4 rung',
    ],
    [
      'token budget',
      having('scheduler: { max_num_batched_tokens: 8 }'),
      '2:38 scheduler.max_num_batched_tokens: 8 is less than max_num_seqs (64): each running sequence needs one token a step',
    ],
    [
      'budget default',
      having('scheduler: { max_num_seqs: 1024 }'),
      '2:12 scheduler.max_num_batched_tokens: 512 is less than max_num_seqs (1024): each running sequence needs one token a step',
    ],
    [
      'not loopback',
      having('server: { http: "0.0.0.0:80" }'),
      '2:17 server.http: 0.0.0.0 is not a loopback address, and off loopback API keys are required: set server.api_keys_file (edgeshift keys create)',
    ],
    ['half a TLS pair', having('server: { tls_cert: cert.pem }'), '2:21 server.tls_cert: needs tls_key beside it'],
    [
      'same address',
      having('server: { http: "127.0.0.1:9", grpc: "127.0.0.1:9" }'),
      '2:38 server.grpc: the same address as server.http',
    ],
  ])('%s', (_, text, fault) => {
    expect(faults(text)).toEqual([fault])
  })

  test('two models: id twice, tag of another', () => {
    const rung = 'variants: [{ precision: fp16, path: x }]'
    const text = `models:\n- { id: a, tags: [t], ${rung} }\n- { id: a, tags: [t], ${rung} }\n`
    expect(faults(text)).toEqual([
      '3:9 models[1].id: model id "a" is used twice',
      '3:19 models[1].tags[0]: tag "t" already belongs to model "a"',
    ])
  })

  test('every fault is reported at once, at most 50', () => {
    expect(faults('models: 1\nserver: 2\ndevices: 3')).toHaveLength(3)
    expect(faults(having(...Array.from({ length: 200 }, (_, index) => `key${index}: 1`)))).toHaveLength(50)
  })
})

describe('hostile text', () => {
  test.each([
    ['alias', 'models: &a [*a]', 'anchors are not allowed'],
    ['merge key', 'a: &a {}\nb: { <<: *a }', 'anchors are not allowed'],
    [
      'laughs',
      `a: &a [x]\n${Array.from({ length: 9 }, (_, i) => `b${i}: &b${i} [*a, *a]`).join('\n')}`,
      'anchors are not allowed',
    ],
    ['tag', 'models: !!js/function "x"', 'tag'],
    ['own tag', 'models: !secret x', 'tag'],
    ['duplicate key', `${MODEL}\n${MODEL}`, 'Map keys must be unique'],
    ['two documents', `${MODEL}\n---\n${MODEL}`, 'multiple documents'],
    ['tab', 'models:\n\t- id: x', 'Tabs are not allowed'],
    ['unclosed', 'models: [', ''],
    ['prototype', '__proto__: { models: [] }', 'unknown key "__proto__"'],
    ['key that is no text', '1: x', 'a key must be a plain string'],
    ['key that is a list', '? [a]\n: b', 'a key must be a plain string'],
    ['brackets', '['.repeat(100_000), 'nested too deep'],
    ['brackets on lines', '[\n'.repeat(100_000), 'nested too deep'],
    ['dashes', '- '.repeat(100_000), 'nested too deep'],
    ['steps', Array.from({ length: 500 }, (_, i) => `${' '.repeat(i)}a:`).join('\n'), 'nested too deep'],
    ['null bytes', '\0'.repeat(1000), ''],
  ])('%s', (_, text, message) => {
    const found = faults(text)
    expect(found.length).toBeGreaterThan(0)
    expect(found[0]).toContain(message)
  })
})

describe('the file', () => {
  test('each line of the message is file:line:column: path: reason', () => {
    const path = file('bad.yaml', 'models: 5\n')
    expect(() => loadConfig(path)).toThrow(`${path}:1:9: models: expected a list, found 5`)
  })

  test.each([
    ['missing', () => join(folder, 'none.yaml'), 'none.yaml: no such file'],
    ['folder', () => folder, 'not a regular file'],
    ['too large', () => file('large.yaml', '#'.repeat(300_000)), '300000 bytes; at most 262144 are read'],
    ['not text', () => file('binary.yaml', Uint8Array.of(0xff, 0xfe, 0)), 'not UTF-8 text'],
  ])('%s', (_, path, message) => {
    expect(() => loadConfig(path())).toThrow(message)
  })
})
