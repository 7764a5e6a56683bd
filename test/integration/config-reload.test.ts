/** Edits of models.yaml while the engine serves: what changes, what is left alone, what is refused. */
import { mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { EngineStatus, FinishReason, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { ConfigWatcher, parseConfig } from '../../engine/config/index.js'
import { devicesInUse, diffConfig } from '../../engine/residency/diff.js'
import { engineStatus } from '../../engine/server/status.js'
import { restartRemarks } from '../../gateway/restart-remarks.js'
import { eventually, GatewayProcess } from '../support/gateway-process.js'
import { type InProcessEngine, engineInProcess, tinyModel } from '../support/engine-in-process.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})

interface Edit {
  memory?: number
  extra?: string
  models?: string[]
}

const model = (id: string, type: string, more = ''): string =>
  `  - { id: ${id}, variants: [{ path: ${JSON.stringify(tinyModel(type))} }], max_model_len: 128${more} }`

function yaml({ memory = 0.5, extra = '', models = [model('a', 'f16'), model('b', 'q8_0')] }: Edit = {}): string {
  return `devices: [{ id: cpu0, kind: cpu, threads: 1, memory_gb: ${memory} }]\n${extra}\nmodels:\n${models.join('\n')}\n`
}

const parsed = (edit: Edit) => parseConfig(yaml(edit), 'models.yaml')

describe('diffConfig', () => {
  it.each<[string, Edit, Partial<ReturnType<typeof diffConfig>>]>([
    ['nothing', {}, { kept: ['a', 'b'], fresh: [], retired: [], budgets: [], later: [] }],
    ['a pin', { models: [model('a', 'f16', ', placement: { pin: true }'), model('b', 'q8_0')] }, { kept: ['a', 'b'] }],
    [
      'another file',
      { models: [model('a', 'f32'), model('b', 'q8_0')] },
      { kept: ['b'], fresh: ['a'], retired: ['a'] },
    ],
    [
      'a model more',
      { models: [model('a', 'f16'), model('b', 'q8_0'), model('c', 'f32')] },
      { kept: ['a', 'b'], fresh: ['c'], retired: [] },
    ],
    ['a model less', { models: [model('b', 'q8_0')] }, { kept: ['b'], fresh: [], retired: ['a'] }],
    [
      'the batch size',
      { extra: 'scheduler: { max_num_seqs: 3 }' },
      { kept: [], fresh: ['a', 'b'], retired: ['a', 'b'] },
    ],
    ['the queue', { extra: 'scheduler: { max_waiting: 3 }' }, { kept: ['a', 'b'], fresh: [] }],
    ['times', { extra: 'scheduler: { interactive_goal: 1s, step_timeout: 9s }' }, { kept: ['a', 'b'], fresh: [] }],
  ])('%s', (_, edit, expected) => {
    expect(diffConfig(parsed({}), parsed(edit), new Set())).toMatchObject(expected)
  })

  it('tells memory, which changes at once, from what needs a new start', () => {
    const next = parsed({ memory: 0.7 })
    expect(diffConfig(parsed({}), next, new Set()).budgets.map(({ id }) => id)).toEqual(['cpu0'])
    next.devices = next.devices.map((device) => Object.assign(device, { threads: 2 }))
    expect(diffConfig(parsed({}), next, new Set())).toMatchObject({
      later: [{ path: ['devices', 0, 'threads'] }],
    })
    expect(diffConfig(parsed({}), { ...next, devices: [] }, new Set())).toMatchObject({
      later: [{ path: ['devices'], message: 'cpu0 is given back at the next start' }],
    })
  })

  it("tells of a GPU's budget that its KV memory stays", () => {
    const gpu = (memory: number) =>
      parseConfig(yaml().replace(/devices: .*/, `devices: [{ id: gpu0, kind: cuda, memory_gb: ${memory} }]`), 'm.yaml')
    expect(diffConfig(gpu(8), gpu(9), new Set())).toMatchObject({
      budgets: [{ id: 'gpu0' }],
      later: [{ path: ['devices', 0], message: /KV memory keeps its size/ }],
    })
  })

  it('tells what waits as long as it differs from what was opened', () => {
    const opened = parsed({})
    const edited = parsed({})
    edited.devices = edited.devices.map((device) => Object.assign(device, { threads: 2 }))
    const waiting = [{ path: ['devices', 0, 'threads'] }]
    expect(diffConfig(edited, edited, new Set(), opened)).toMatchObject({ later: waiting })
    expect(diffConfig(edited, parsed({}), new Set(), opened)).toMatchObject({ later: [] })
  })

  it('lets models be on what is open, as it was opened, and on what comes', () => {
    const devices = (...entries: string[]) =>
      parseConfig(yaml().replace(/devices: .*/, `devices: [${entries.join(', ')}]`), 'm.yaml')
    const opened = devices('{ id: a, kind: cpu }', '{ id: b, kind: cpu }')
    const next = devices('{ id: c, kind: cuda }', '{ id: b, kind: cuda }')
    expect(devicesInUse(opened, next).map(({ id, kind }) => `${id} ${kind}`)).toEqual(['c cuda', 'b cpu', 'a cpu'])
  })

  it('reads models again whose files could not be used', () => {
    expect(diffConfig(parsed({}), parsed({}), new Set(['b']))).toMatchObject({
      kept: ['a'],
      fresh: ['b'],
      retired: ['b'],
    })
  })
})

describe('what waits for the next start', () => {
  const server = (text: string) => `server: ${text}\n${yaml()}`
  const remarks = (before: string, after: string): string[] =>
    restartRemarks(parseConfig(server(before), 'm.yaml'), parseConfig(server(after), 'm.yaml'), server(after), 'm.yaml')

  it('is told with its place, and only that', () => {
    expect(remarks('{ http: "127.0.0.1:1" }', '{ engine_wait: 1s, http: "127.0.0.1:2" }')).toEqual([
      'm.yaml:1:34: server.http: takes effect at the next start; until then the old one is used',
    ])
    expect(remarks('{ api_keys_file: a.yaml }', '{}')[0]).toMatch(/^m\.yaml:1:\d+: server\.api_keys_file: /)
    expect(remarks('{}', '{ engines: shared }')).toEqual([])
    expect(remarks('{}', '{ drain_timeout: 1s, resume_grace: 1s, log_prompts: true, failover_wait: 1s }')).toEqual([])
  })

  it('is a device that comes to those with an engine of their own', () => {
    const text = (engines: string, ...ids: string[]) =>
      `server: { engines: ${engines} }\ndevices: [${ids.map((id) => `{ id: ${id}, kind: cpu }`).join()}]\nmodels: [{ id: a, variants: [{ precision: fp16, path: x }] }]\n`
    const remarksOf = (before: string, after: string): string[] =>
      restartRemarks(parseConfig(before, 'm.yaml'), parseConfig(after, 'm.yaml'), after, 'm.yaml')
    expect(remarksOf(text('per_device', 'one'), text('per_device', 'one', 'two'))).toEqual([
      'm.yaml:2:34: devices[1]: two gets its engine at the next start',
    ])
    expect(remarksOf(text('shared', 'one'), text('shared', 'one', 'two'))).toEqual([])
    expect(remarksOf(text('shared', 'one'), text('per_device', 'one'))).toHaveLength(1)
  })
})

describe('ConfigWatcher', () => {
  /** Writes with the given hands, and returns what the watcher said. */
  async function watched(edit: (file: string, folder: string) => void): Promise<string[]> {
    const folder = mkdtempSync(join(tmpdir(), 'es-watch-'))
    cleanups.push(() => rmSync(folder, { recursive: true }))
    const file = join(folder, 'models.yaml')
    writeFileSync(file, yaml())
    const heard: string[] = []
    await new Promise<void>((resolve) => {
      const watcher = new ConfigWatcher(file, parsed({}).digest, {
        accepted: ({ models }) => {
          heard.push(models.map(({ id }) => id).join())
          resolve()
        },
        refused: ({ message }) => {
          heard.push(message.replace(file, 'FILE'))
          resolve()
        },
      })
      cleanups.push(() => watcher.close())
      const alive = setInterval(() => {}, 1000)
      cleanups.push(() => clearInterval(alive))
      edit(file, folder)
    })
    return heard
  }
  const next = yaml({ models: [model('c', 'f16')] })

  it('hears of a file written in place, replaced by renaming, and of a link turned', async () => {
    expect(await watched((file) => writeFileSync(file, next))).toEqual(['c'])
    const renamed = watched((file, folder) => {
      writeFileSync(join(folder, '.models.yaml.swp'), next)
      renameSync(join(folder, '.models.yaml.swp'), file)
    })
    expect(await renamed).toEqual(['c'])
    const linked = watched((file, folder) => {
      writeFileSync(join(folder, 'new'), next)
      symlinkSync('new', join(folder, 'link'))
      renameSync(join(folder, 'link'), file)
    })
    expect(await linked).toEqual(['c'])
  })

  it('tells of an edit that came between reading the file and watching it, once', () => {
    const folder = mkdtempSync(join(tmpdir(), 'es-watch-'))
    cleanups.push(() => rmSync(folder, { recursive: true }))
    const file = join(folder, 'models.yaml')
    writeFileSync(file, next)
    const heard: string[] = []
    const watcher = new ConfigWatcher(file, parsed({}).digest, {
      accepted: ({ digest }, text) => heard.push(digest, text),
      refused: ({ message }) => heard.push(message),
    })
    cleanups.push(() => watcher.close())
    watcher.check()
    watcher.check()
    expect(heard).toEqual([parseConfig(next, file).digest, next])
  })

  it('refuses a bad edit with line and reason', async () => {
    const [message] = await watched((file) => writeFileSync(file, yaml({ extra: 'modles: []' })))
    expect(message).toMatch(/^FILE:2:1: modles: .*did you mean "models"/)
  })
})

describe('a running engine', () => {
  async function start(edit: Edit = {}): Promise<InProcessEngine> {
    const box = engineInProcess(yaml(edit))
    cleanups.push(() => box.close())
    await box.settled()
    return box
  }
  const states = ({ engine }: InProcessEngine): string[] =>
    Array.from(engine.variants.values(), ({ name, state }) => `${name} ${VariantState[state]}`)

  it('adds, drops and replaces models while the others go on, to the end of what runs', async () => {
    const box = await start()
    const alone = await box.ask('b:int8', [1, 2, 3], { maxTokens: 100 })
    const kept = box.ask('b:int8', [1, 2, 3], { maxTokens: 100 })
    const old = box.ask('a:fp16', [1, 2, 3], { maxTokens: 100 })
    await new Promise((resolve) => setImmediate(resolve))
    const before = box.variant('b:int8').resident
    box.reloader.apply(parsed({ models: [model('a', 'q4_1'), model('b', 'q8_0'), model('c', 'f32')] }))
    expect(states(box)).toEqual(['a:int4 LOADING', 'b:int8 READY', 'c:fp16 LOADING'])
    expect((await old).end.finishReason).toBe(FinishReason.LENGTH)
    expect((await kept).tokens).toEqual(alone.tokens)
    expect(box.variant('b:int8').resident).toBe(before)
    await box.settled()
    expect(states(box)).toEqual(['a:int4 READY', 'b:int8 READY', 'c:fp16 READY'])
    expect(box.ledger().filter((entry) => entry.includes('a:fp16'))).toEqual([])
    expect((await box.ask('a:fp16', [1])).end.error?.code).toBe('invalid_request')
    expect((await box.ask('a:int4', [1])).end.finishReason).toBe(FinishReason.LENGTH)
  })

  it('a smaller budget sends idle models away and keeps the one at work; a larger one lets them come back', async () => {
    const box = await start()
    const { budgetBytes } = box.engine.devices[0]?.ledger ?? { budgetBytes: 0 }
    const running = box.ask('b:int8', [1, 2, 3], { maxTokens: 120 })
    await new Promise((resolve) => setImmediate(resolve))
    // Overhead, one sequence and the one at work.
    const small = (budgetBytes - 1) / 1e9 / 6.5
    box.reloader.apply(parsed({ memory: small }))
    await box.settled()
    expect(states(box)).toEqual(['a:fp16 UNLOADED', 'b:int8 READY'])
    expect((await running).end.finishReason).toBe(FinishReason.LENGTH)
    const [device] = box.engine.devices
    // The last sequence's KV memory goes after its end was told.
    await eventually(() => (device?.ledger.freeBytes ?? -1) >= 0, 'KV memory keeps within the budget')
    box.reloader.apply(parsed({}))
    expect(box.residency.outlook(box.variant('a:fp16'))).toMatchObject({ loadable: true })
    expect((await box.ask('a:fp16', [1])).end.finishReason).toBe(FinishReason.LENGTH)
  })

  it('opens a device that comes for models which go on', async () => {
    const box = await start()
    const more = yaml().replace(']\n', ', { id: cpu1, kind: cpu, threads: 1, memory_gb: 0.5 }]\n')
    box.reloader.apply(parseConfig(more, 'models.yaml'))
    expect(box.engine.devices.map(({ description }) => description.id)).toEqual(['cpu0', 'cpu1'])
    expect(states(box)).toEqual(['a:fp16 READY', 'b:int8 READY'])
  })

  it('goes on with a device that was dropped until the next start, also for models that are read again', async () => {
    const box = await start()
    const dropped = { ...parsed({ extra: 'scheduler: { max_num_seqs: 3 }' }), devices: [] }
    expect(box.reloader.plan(dropped).later).toMatchObject([{ message: 'cpu0 is given back at the next start' }])
    box.reloader.apply(dropped)
    await box.settled()
    expect(states(box)).toEqual(['a:fp16 READY', 'b:int8 READY'])
    for (const name of ['a:fp16', 'b:int8']) await box.residency.unload(name)
    expect((await box.ask('b:int8', [1])).end.finishReason).toBe(FinishReason.LENGTH)
    expect(() => EngineStatus.encode(engineStatus(box.engine)).finish()).not.toThrow()
  })
})

describe('the whole program', { timeout: 60_000 }, () => {
  it("reads a changed model's text files when the engine has the edit, however late that is", async () => {
    const head = 'server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0", engine_wait: 60s }\n'
    const box = GatewayProcess.startShipped(() => head + yaml())
    cleanups.push(() => box.close())
    await box.ready()
    const tokens = async (): Promise<unknown> => {
      const response = await fetch(`${box.url}/tokenize`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'a', prompt: 'The capital of France' }),
      })
      return ((await response.json()) as { tokens?: unknown }).tokens
    }
    const before = await tokens()
    const [engine = 0] = box.enginePids
    const reloaded = () => box.log.filter(({ msg }) => msg === 'configuration reloaded').length
    process.kill(engine, 'SIGSTOP')
    writeFileSync(
      join(box.tmp, 'models.yaml'),
      head +
        yaml({ models: [`  - { id: a, variants: [{ path: ${JSON.stringify(SMOLLM2_FILE)} }], max_model_len: 128 }`] }),
    )
    // Gone with the old files, not come with the new ones.
    for (let answer = before; answer !== undefined;) answer = await tokens()
    process.kill(engine, 'SIGCONT')
    await box.until(() => reloaded() === 2, 'engine and gateway have the edit')
    expect(before).not.toEqual([504, 3575, 282, 4649])
    expect(await tokens()).toEqual([504, 3575, 282, 4649])
  })

  it('takes an edit of which it cannot keep a copy', async () => {
    const head = 'server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0", engine_wait: 60s }\n'
    const box = GatewayProcess.startShipped(() => head + yaml())
    cleanups.push(() => box.close())
    await box.ready()
    const folder = readdirSync(box.tmp).find((name) => name.startsWith('edgeshift-')) ?? ''
    const copy = join(box.tmp, folder, 'last-good.yaml')
    rmSync(copy)
    // Nothing can be written there, whoever tries.
    mkdirSync(join(copy, 'in the way'), { recursive: true })
    writeFileSync(join(box.tmp, 'models.yaml'), head + yaml({ models: [model('a', 'f16'), model('c', 'f32')] }))
    const logged = (msg: RegExp) => box.log.find((line) => msg.test(String(line['msg'])) && line['name'] !== 'engine')
    await box.until(() => logged(/^(configuration reloaded|the texts of .*)$/) !== undefined, 'the edit is read')
    expect(logged(/reloaded/)).toBeDefined()
    expect(logged(/^no copy of the edit/)).toMatchObject({ level: 40, err: { code: 'EISDIR' } })
    expect(readdirSync(join(box.tmp, folder))).not.toContain('last-good.yaml.new')
    const response = await fetch(`${box.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model: 'c', prompt: [1, 2], max_tokens: 2 }),
    })
    expect(response.status).toBe(200)
  })

  it('serves a model that is added, keeps the old configuration after a bad edit, also through a crash', async () => {
    const head = 'server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0", engine_wait: 60s }\n'
    const box = GatewayProcess.startShipped(() => head + yaml())
    cleanups.push(() => box.close())
    await box.ready()
    const file = join(box.tmp, 'models.yaml')
    const ask = async (name: string): Promise<number> => {
      const body = JSON.stringify({ model: name, prompt: [1, 2], max_tokens: 2 })
      const response = await fetch(`${box.url}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body,
      })
      await response.text()
      return response.status
    }
    expect([await ask('a'), await ask('c')]).toEqual([200, 404])
    writeFileSync(file, head + yaml({ models: [model('a', 'f16'), model('c', 'f32')] }))
    const logged = (msg: string) => box.log.find((line) => line['msg'] === msg && line['name'] !== 'engine')
    await box.until(() => logged('configuration reloaded') !== undefined, 'the new model is read')
    expect([await ask('a'), await ask('b'), await ask('c')]).toEqual([200, 404, 200])
    const limited = head.replace('60s', '50ms').replace('"127.0.0.1:0"', '"127.0.0.1:1"')
    const devices = yaml({ models: [model('a', 'f16'), model('c', 'f32')] }).replace('threads: 1', 'threads: 2')
    writeFileSync(file, limited + devices)
    const remarks = (): string[] => box.log.flatMap(({ remark }) => (typeof remark === 'string' ? [remark] : []))
    await box.until(() => remarks().length === 2, 'what waits for the next start')
    expect(
      remarks()
        .toSorted()
        .map((remark) => remark.replace(/^.*models\.yaml:/, '')),
    ).toEqual([
      '1:17: server.http: takes effect at the next start; until then the old one is used',
      '2:43: devices[0].threads: takes effect at the next start; until then the device stays as it is',
    ])
    expect(await ask('a')).toBe(200)
    const told = async (path: string): Promise<string[] | undefined> => {
      const answer = (await (await fetch(box.url + path)).json()) as { config_remarks?: string[] }
      return answer.config_remarks?.map((remark) => remark.replace(/\S*models\.yaml:/, ''))
    }
    const waiting = [
      '1:17: server.http: takes effect at the next start; until then the old one is used',
      '2:43: devices[0].threads: takes effect at the next start; until then the device stays as it is',
    ]
    for (const path of ['/admin/models', '/health']) expect(await told(path)).toEqual(waiting)
    writeFileSync(file, 'models: 7')
    const refusal = 'edit of the configuration refused'
    await box.until(() => logged(refusal) !== undefined, refusal)
    expect(logged(refusal)?.['reason']).toMatch(/models\.yaml:1:9: models: /)
    for (const path of ['/admin/models', '/health']) {
      expect(await told(path)).toEqual([expect.stringMatching(/^edit refused: 1:9: models: /), ...waiting])
    }
    process.kill(box.enginePids[0] ?? 0, 'SIGKILL')
    // The wait of 60 s was cut to 50 ms while it served.
    await box.until(() => logged('the engine ended; it is restarted') !== undefined, 'the end of the engine')
    expect(await ask('a')).toBe(503)
    await box.until(() => box.enginePids.length === 2, 'another engine')
    const served = async (name: string): Promise<number> => {
      for (;;) {
        const status = await ask(name)
        if (status !== 503) return status
      }
    }
    expect([await served('a'), await served('c')]).toEqual([200, 200])
  })
})
