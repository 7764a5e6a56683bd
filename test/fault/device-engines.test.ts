/**
 * An engine for each device (`engines: per_device`), a model on each. One engine is killed in mid-answer: its streams go on on
 * the other device, or on its own when that is back, with their texts; streams of the other engine notice nothing. And both
 * are killed, by turns and together, at random moments. FAULT_ROUNDS=10 is the long form (npm run test:fault-long). With
 * EDGESHIFT_TEST_DEVICE=cuda on two GPUs, or on one beside the CPU; texts may part at near ties there.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, expect, it } from 'vitest'
import { AnyProtocol, type Job, WAYS } from '../support/any-protocol.js'
import { eventually, GatewayProcess, isRunning } from '../support/gateway-process.js'
import { LadderAnswers } from '../support/ladder-answers.js'
import { randoms } from '../support/randoms.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { cudaDevices, testDevice } from '../support/test-device.js'

const ROUNDS = Number(process.env.FAULT_ROUNDS ?? 1)
const SEED = Number(process.env.FAULT_SEED ?? 1)

/** There is no other rung to go to: a breaker that three deaths of its engine in a row have opened lets a request through soon. */
const POLICY = 'policy: { recover_after: 100ms, min_dwell: 100ms }'
const RUNG = `max_model_len: 256, ${POLICY}, variants: [{ precision: int4, path: ${JSON.stringify(SMOLLM2_FILE)} }]`
const { kind } = testDevice({ cpu: 1, cuda: 4 })
const [ONE, TWO] = {
  cpu: ['kind: cpu, threads: 1, memory_gb: 1', 'kind: cpu, threads: 1, memory_gb: 1'],
  cuda: [
    'kind: cuda, index: 0, memory_gb: 4',
    cudaDevices() > 1 ? 'kind: cuda, index: 1, memory_gb: 4' : 'kind: cpu, threads: 2, memory_gb: 1',
  ],
}[kind]
const CONFIG = `
server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0", engines: per_device, engine_wait: 60s, failover_wait: 60s }
devices:
  - { id: one, ${ONE} }
  - { id: two, ${TWO} }
models:
  - { id: left, tags: [chat], ${RUNG}, placement: { devices: [one, two] } }
  - { id: right, ${RUNG}, placement: { devices: [two, one] } }
  - { id: only, ${RUNG}, placement: { devices: [two] } }
`

const job = (model: string, seed: number): Job => ({
  model,
  content: ['Tell me a story about a fox.', 'List five rivers.'][seed] ?? '',
  seed,
  temperature: 0.9 * seed,
  frequency_penalty: seed,
  // A GPU takes a few milliseconds for 24.
  maxTokens: { cpu: 24, cuda: 160 }[kind],
})
const JOBS = ['left', 'right'].flatMap((model) => [job(model, 0), job(model, 1)])

/** Those of the texts, one for every job and way, that are not as expected, nor as they may be on a GPU. */
async function wrong(answers: readonly { answer: { text: string } }[], expected: readonly string[]): Promise<string[]> {
  const others = answers.flatMap(({ answer: { text } }, i) =>
    text === expected[i] ? [] : [{ job: JOBS[Math.floor(i / WAYS)], text }],
  )
  if (kind === 'cpu' || others.length === 0) return others.map(({ text }) => text)
  const ladder = await LadderAnswers.open()
  const left: string[] = []
  for (const { job: one, text } of others) {
    // oxlint-disable-next-line no-await-in-loop -- most texts need no look
    if (!one || !(await ladder.gives(one, [{ variant: 'smollm2:int4', from: 0 }], text))) left.push(text)
  }
  await ladder.close()
  return left
}

const closing: (() => Promise<void>)[] = []
afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close()
})

async function start(): Promise<{ box: GatewayProcess; clients: AnyProtocol }> {
  const box = await GatewayProcess.startShipped(() => CONFIG).ready()
  closing.push(() => box.close())
  const clients = new AnyProtocol(box)
  closing.push(async () => clients.close())
  return { box, clients }
}

/** Ids of the engines of a device, in the order of their starts. */
function pidsOf({ log }: GatewayProcess, device: string): number[] {
  return log.flatMap((line) => (line.device === device && typeof line.enginePid === 'number' ? [line.enginePid] : []))
}

/** Kills a device's engine, unless it is dead already and the next one has not started. */
function killLast(box: GatewayProcess, device: string): void {
  const pid = pidsOf(box, device).at(-1)
  if (pid !== undefined && isRunning(pid)) process.kill(pid, 'SIGKILL')
}

interface Row {
  model: string
  device: string
  state: string
  pinned: boolean
}

async function rows({ url }: GatewayProcess): Promise<Record<string, Row>> {
  const answer = (await (await fetch(`${url}/admin/models`)).json()) as { variants: Row[] }
  return Object.fromEntries(answer.variants.map((row) => [row.model, row]))
}

const askAdmin = async ({ url }: GatewayProcess, what: string, model: string): Promise<number> => {
  const headers = { 'content-type': 'application/json' }
  const response = await fetch(`${url}/admin/models/${what}`, {
    method: 'POST',
    headers,
    body: JSON.stringify({ model }),
  })
  await response.text()
  return response.status
}

/** Every job in every way at the same time. */
function askAll(clients: AnyProtocol, onNews = (): void => undefined) {
  const asked = JOBS.flatMap((one) => Array.from({ length: WAYS }, (_, way) => ({ one, way })))
  return Promise.all(asked.map(async ({ one, way }) => ({ one, answer: await clients.ask(way, one, onNews) })))
}

it('the end of one leaves the streams of the other alone', { timeout: 120_000 }, async () => {
  const { box, clients } = await start()
  expect(await rows(box)).toMatchObject({ left: { device: 'one' }, right: { device: 'two' }, only: { device: 'two' } })
  const expected = (await askAll(clients)).map(({ answer }) => answer.text)
  for (const text of expected) expect(text.length).toBeGreaterThan(5)
  let news = 0
  const lossy = await askAll(clients, () => {
    if (++news === 40) killLast(box, 'one')
  })
  expect(await wrong(lossy, expected)).toEqual([])
  const degraded = (model: string): number =>
    lossy.reduce((sum, { one, answer }) => (one.model === model ? sum + answer.degraded : sum), 0)
  expect(degraded('left')).toBeGreaterThan(0)
  expect(degraded('right')).toBe(0)
  await eventually(() => pidsOf(box, 'one').length === 2, 'the engine is started again')
  expect(pidsOf(box, 'two')).toHaveLength(1)
  const again = await askAll(clients)
  expect(await wrong(again, expected)).toEqual([])
  expect(again.every(({ answer }) => answer.degraded === 0)).toBe(true)
})

it(
  `${ROUNDS * 3} ends of both at random moments lose no request and change no text`,
  { timeout: 60_000 * (ROUNDS + 1) },
  async () => {
    const { box, clients } = await start()
    const expected = (await askAll(clients)).map(({ answer }) => answer.text)
    const random = randoms(SEED)
    for (let round = 0; round < ROUNDS; round++) {
      // Of all that streams, some 250 events: one engine, then the other or the same, then both.
      const moments = [0, 1, 2].map((kill) => kill * 60 + 1 + Math.floor(random() * 50))
      const victims = [[random() < 0.5 ? 'one' : 'two'], [random() < 0.5 ? 'one' : 'two'], ['one', 'two']]
      let news = 0
      // oxlint-disable-next-line no-await-in-loop -- rounds follow each other
      const answers = await askAll(clients, () => {
        const kill = moments.indexOf(++news)
        for (const device of victims[kill] ?? []) killLast(box, device)
      })
      // oxlint-disable-next-line no-await-in-loop -- rounds follow each other
      expect({ round, wrong: await wrong(answers, expected) }).toEqual({ round, wrong: [] })
      expect(answers.every(({ one, answer }) => answer.completionTokens === one.maxTokens)).toBe(true)
    }
    const metrics = await (await fetch(`${box.url}/metrics`)).text()
    expect(metrics).not.toMatch(/edgeshift_requests_total\{.*outcome="(?!ok")/)
    expect(metrics).toMatch(/^edgeshift_num_requests_in_flight 0$/m)
  },
)

it('operators reach the engine that has the model, or can take it', { timeout: 60_000 }, async () => {
  const { box, clients } = await start()
  expect(await askAdmin(box, 'unload', 'left:int4')).toBe(200)
  expect((await rows(box)).left).toMatchObject({ state: 'unloaded' })
  expect(await askAdmin(box, 'load', 'left:int4')).toBe(200)
  expect((await rows(box)).left).toMatchObject({ state: 'ready' })
  expect(await askAdmin(box, 'pin', 'only:int4')).toBe(200)
  expect((await rows(box)).only).toMatchObject({ device: 'two', pinned: true })
  expect(await askAdmin(box, 'unload', 'only:int4')).toBe(409)
  const health = (await (await fetch(`${box.url}/health`)).json()) as { status: string }
  expect(health.status).toBe('ok')
  const metrics = await (await fetch(`${box.url}/metrics`)).text()
  expect(metrics).toMatch(/device="one"/)
  expect(metrics).toMatch(/device="two"/)
  expect((await clients.ask(0, job('only', 0), () => undefined)).text.length).toBeGreaterThan(5)
})

const reloads = ({ log }: GatewayProcess): number => log.filter(({ msg }) => msg === 'configuration reloaded').length

it('an edit of models.yaml reaches both engines', { timeout: 60_000 }, async () => {
  const { box, clients } = await start()
  const more = ['a', 'b'].map((id) => `  - { id: ${id}, ${RUNG} }\n`).join('')
  writeFileSync(
    join(box.tmp, 'models.yaml'),
    `${CONFIG.replace(/memory_gb: (\d) \}\nmodels/, (_, size) => `memory_gb: ${2 * Number(size)} }\nmodels`)}${more}`,
  )
  await eventually(() => reloads(box) === 3, 'gateway and engines have read the edit')
  for (const id of ['a', 'b']) {
    expect((await clients.ask(0, job(id, 0), () => undefined)).text.length).toBeGreaterThan(5)
  }
  expect(await rows(box)).toMatchObject({ left: { device: 'one' }, a: { state: 'ready' }, b: { state: 'ready' } })
})

it(
  'a device that an edit drops is used until the next start, and its engine may die meanwhile',
  { timeout: 60_000 },
  async () => {
    const { box, clients } = await start()
    const expected = (await askAll(clients)).map(({ answer }) => answer.text)
    const dropped = CONFIG.replace(/ {2}- \{ id: two,.*\n/, '').replaceAll(/placement: \{ devices: \[[^\]]*\] \}/g, '')
    writeFileSync(join(box.tmp, 'models.yaml'), `${dropped}scheduler: { max_num_seqs: 32 }\n`)
    await eventually(() => reloads(box) === 3, 'gateway and engines have read the edit')
    // The metrics ask every engine anew, so that what is known below is what they say after the edit.
    const metrics = await (await fetch(`${box.url}/metrics`)).text()
    expect(new Set(metrics.match(/device="(one|two)"/g))).toEqual(new Set(['device="one"', 'device="two"']))
    const health = (await (await fetch(`${box.url}/health`)).json()) as { config_remarks?: string[] }
    const remark = /devices: two is given back at the next start$/
    expect(health.config_remarks).toEqual([expect.stringMatching(remark)])
    expect(await wrong(await askAll(clients), expected)).toEqual([])
    killLast(box, 'two')
    await eventually(() => pidsOf(box, 'two').length === 2, 'the engine is started again')
    expect(await wrong(await askAll(clients), expected)).toEqual([])
    expect(box.log.filter(({ msg }) => msg === 'the engine could not be reached')).toEqual([])
    expect([pidsOf(box, 'one').length, pidsOf(box, 'two').length]).toEqual([1, 2])
  },
)
