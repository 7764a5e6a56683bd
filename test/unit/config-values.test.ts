import { createHash } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { defaultDevices, parseConfig } from '../../engine/config/index.js'
import { faults, having, ladder, MODEL, model } from '../support/config-text.js'

test('defaults', () => {
  expect(parseConfig(MODEL, '/box/models.yaml')).toEqual({
    digest: createHash('sha256').update(MODEL).digest('hex'),
    server: {
      http: { host: '127.0.0.1', port: 8080 },
      grpc: { host: '127.0.0.1', port: 8081 },
      engine_wait: 5000,
      failover_wait: 90_000,
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
