import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { ConfigError, defaultDevices, loadConfig, parseConfig } from '../../engine/config/index.js'

const folder = mkdtempSync(join(tmpdir(), 'edgeshift-config-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Writes a file into the test's folder. */
const file = (name: string, content: string | Uint8Array) => {
  writeFileSync(join(folder, name), content)
  return join(folder, name)
}

/** The faults of a text: "line:column path: message". */
function faults(text: string): string[] {
  try {
    parseConfig(text, '/box/models.yaml')
    return []
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    return error.problems.map(({ line, column, path, message }) => `${line}:${column} ${path}: ${message}`)
  }
}

const MODEL = 'models: [{ id: m, variants: [{ precision: fp16, path: x.gguf }] }]'
/** A file with one model and more lines after it. */
const having = (...lines: string[]) => [MODEL, ...lines].join('\n')
/** A file whose one model has these lines beside id. */
const model = (...lines: string[]) => ['models:', '  - id: m', ...lines.map((line) => `    ${line}`)].join('\n')
const ladder = (...rungs: string[]) => model('variants:', ...rungs.map((rung) => `  - { ${rung} }`))

test('defaults', () => {
  expect(parseConfig(MODEL, '/box/models.yaml')).toEqual({
    digest: createHash('sha256').update(MODEL).digest('hex'),
    server: {
      http: { host: '127.0.0.1', port: 8080 },
      grpc: { host: '127.0.0.1', port: 8081 },
      engine_wait: 5000,
      failover_wait: 60_000,
      engine_timeout: 30_000,
      engines: 'shared',
      resume_grace: 30_000,
      drain_timeout: 30_000,
      log_prompts: false,
      cache_gb: 20,
    },
    devices: [],
    models: [
      {
        id: 'm',
        tags: [],
        variants: [{ precision: 'fp16', path: '/box/x.gguf' }],
        placement: { pin: false, keep_alive: 600_000 },
        policy: {
          prefer: 'highest_that_fits',
          degrade_on: ['oom', 'failure', 'pressure', 'deadline'],
          max_failures: 3,
          recover_after: 60_000,
          min_dwell: 120_000,
        },
      },
    ],
    scheduler: {
      block_size: 16,
      max_num_seqs: 64,
      max_num_batched_tokens: 512,
      step_timeout: 120_000,
      interactive_goal: 300,
      max_waiting: 256,
      enable_prefix_caching: true,
      kv_cache_dtype: 'auto',
    },
  })
})

test('a derived rung has the file of the one it comes from', () => {
  const config = parseConfig(
    ladder('precision: fp16, path: a/x.gguf', 'precision: int4, from: fp16'),
    '/box/models.yaml',
  )
  expect(config.models[0]?.variants).toEqual([
    { precision: 'fp16', path: '/box/a/x.gguf' },
    { precision: 'int4', path: '/box/a/x.gguf', from: 'fp16' },
  ])
})

test.each(['auto', 'fp16', 'fp8', 'int8'] as const)('a KV cache of type %s, for all models and for one', (dtype) => {
  const config = parseConfig(having(`scheduler: { kv_cache_dtype: ${dtype} }`), '/box/models.yaml')
  expect(config.scheduler.kv_cache_dtype).toBe(dtype)
  expect(config.models[0]?.kv_cache_dtype).toBeUndefined()
  const own = parseConfig(
    `models: [{ id: m, kv_cache_dtype: ${dtype}, variants: [{ precision: fp16, path: x.gguf }] }]`,
    '/box/models.yaml',
  )
  expect(own.models[0]?.kv_cache_dtype).toBe(dtype)
})

test('durations that a timer waits for go as far as timers do, others as far as people write', () => {
  const timed = having('scheduler: { step_timeout: 35760m }', 'server: { engine_timeout: 596h, failover_wait: 9999h }')
  const { scheduler, server } = parseConfig(timed, '/box/models.yaml')
  expect([scheduler.step_timeout, server.engine_timeout]).toEqual([596 * 3_600_000, 596 * 3_600_000])
  expect(server.failover_wait).toBe(9999 * 3_600_000)
  const kept = model('variants: [{precision: fp16, path: x}]', 'placement: { keep_alive: 999999999h }')
  expect(parseConfig(kept, '/box/models.yaml').models[0]?.placement.keep_alive).toBe(999_999_999 * 3_600_000)
})

describe('one value', () => {
  test.each([
    ['unknown key', having('sever: {}'), '2:1 sever: unknown key; did you mean "server"?'],
    [
      'far from any',
      having('zzzzzzzz: 1'),
      '2:1 zzzzzzzz: unknown key; known here: server, devices, models, scheduler',
    ],
    [
      'as vLLM spells flags',
      having('scheduler:', '  max-num-seqs: 4'),
      '3:3 scheduler.max-num-seqs: unknown key; did you mean "max_num_seqs"?',
    ],
    [
      'deep unknown key',
      model('variants: [{precision: fp16, path: x}]', 'policy:', '  max_failure: 2'),
      '5:7 models[0].policy.max_failure: unknown key; did you mean "max_failures"?',
    ],
    [
      'key of another kind',
      having('devices: [{ id: a, kind: cpu, index: 0 }]'),
      '2:31 devices[0].index: unknown key; known here: id, kind, memory_gb, threads, swap_gb',
    ],
    [
      'host cache on a CPU',
      having('devices: [{ id: cpu0, kind: cpu, host_cache_gb: 1 }]'),
      '2:34 devices[0].host_cache_gb: a CPU device computes in host memory and has no second copy there; server.cache_dir keeps repacked files, which the page cache holds',
    ],
    [
      'host cache elsewhere',
      having('server: { host_cache_gb: 1 }'),
      '2:11 server.host_cache_gb: unknown key; did you mean "cache_gb"?',
    ],
    [
      'wrong kind',
      having('devices: [{ id: a, kind: cdua }]'),
      '2:26 devices[0].kind: expected cpu or cuda, found "cdua"; did you mean "cuda"?',
    ],
    ['no kind', having('devices: [{ id: a }]'), '2:11 devices[0].kind: missing; expected cpu or cuda'],
    [
      'text for a number',
      having('scheduler: { block_size: big }'),
      '2:26 scheduler.block_size: expected a number, found "big"',
    ],
    [
      'fraction',
      having('scheduler: { max_waiting: 1.5 }'),
      '2:27 scheduler.max_waiting: expected a whole number, found 1.5',
    ],
    [
      'out of range',
      having('scheduler: { max_num_seqs: 0 }'),
      '2:28 scheduler.max_num_seqs: too small: expected number to be >=1',
    ],
    [
      'not a multiple',
      having('scheduler: { block_size: 12 }'),
      '2:26 scheduler.block_size: invalid number: must be a multiple of 8',
    ],
    [
      'not a number',
      having('devices: [{ id: a, kind: cpu, memory_gb: .nan }]'),
      '2:42 devices[0].memory_gb: expected a number, found null',
    ],
    [
      'yes is no boolean',
      having('scheduler: { enable_prefix_caching: yes }'),
      '2:37 scheduler.enable_prefix_caching: expected true or false, found "yes"',
    ],
    ['nothing', having('scheduler:'), '2:11 scheduler: expected a section of keys, found nothing'],
    ['list for a section', having('server: []'), '2:9 server: expected a section of keys, found a list'],
    [
      'address',
      having('server: { http: localhost }'),
      '2:17 server.http: expected host:port, e.g. 127.0.0.1:8080, found "localhost"',
    ],
    [
      'port',
      having('server: { http: "localhost:70000" }'),
      '2:17 server.http: expected host:port, e.g. 127.0.0.1:8080, found "localhost:70000"',
    ],
    [
      'duration',
      model('variants: [{precision: fp16, path: x}]', 'placement: { keep_alive: 10 min }'),
      '4:30 models[0].placement.keep_alive: expected a duration such as 500ms, 60s, 10m or 1h, found "10 min"',
    ],
    [
      'duration where a timer waits for it',
      having('server: { drain_timeout: 10 min }'),
      '2:26 server.drain_timeout: expected a duration such as 500ms, 60s, 10m or 1h, found "10 min"',
    ],
    ...['engine_timeout', 'drain_timeout', 'resume_grace'].map((key): [string, string, string] => [
      `${key} longer than a timer takes`,
      having(`server: { ${key}: 597h }`),
      `2:${13 + key.length} server.${key}: longer than a timer can wait; at most 596h`,
    ]),
    [
      'an engine_timeout of nothing',
      having('server: { engine_timeout: 0ms }'),
      '2:27 server.engine_timeout: expected more than 0',
    ],
    [
      'a step_timeout of nothing',
      having('scheduler: { step_timeout: 0s }'),
      '2:28 scheduler.step_timeout: expected more than 0',
    ],
    [
      'step_timeout longer than a timer takes',
      having('scheduler: { step_timeout: 35761m }'),
      '2:28 scheduler.step_timeout: longer than a timer can wait; at most 596h',
    ],
    [
      'threads',
      having('devices: [{ id: a, kind: cpu, threads: all }]'),
      '2:40 devices[0].threads: expected auto or a whole number from 1 to 1024',
    ],
    [
      'precision',
      ladder('precision: fp61, path: x'),
      '4:22 models[0].variants[0].precision: expected fp16 or int8 or int4, found "fp61"; did you mean "fp16"?',
    ],
    [
      'id with a colon',
      'models: [{ id: "a:b", variants: [{ precision: fp16, path: x }] }]',
      '1:16 models[0].id: expected letters, digits, ".", "_" or "-", starting with a letter or digit',
    ],
    ['no models', 'models: []', '1:9 models: too small: expected array to have >=1 items'],
    ['empty', '', '1:1 : expected a section of keys, found nothing'],
  ])('%s', (_, text, fault) => {
    expect(faults(text)).toEqual([fault])
  })
})

describe('a file without devices', () => {
  const cuda = (index: number) => ({ kind: 'cuda' as const, index })
  const cpu = { kind: 'cpu' as const, index: 0 }

  test('runs on every GPU that is found, else on the CPU', () => {
    expect(defaultDevices([cpu, cuda(0), cuda(1)])).toEqual([
      { id: 'gpu0', kind: 'cuda', index: 0, memory_utilization: 0.92, host_cache_gb: 0, swap_gb: 0 },
      { id: 'gpu1', kind: 'cuda', index: 1, memory_utilization: 0.92, host_cache_gb: 0, swap_gb: 0 },
    ])
    expect(defaultDevices([cpu])).toMatchObject([{ id: 'cpu0', kind: 'cpu', memory_gb: 4 }])
  })

  test('may place models on devices that are found', () => {
    const placed = model('variants: [{precision: fp16, path: x}]', 'placement: { devices: [gpu1, cpu0] }')
    expect(faults(placed)).toEqual([])
  })
})

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
