/**
 * kill -9 of the engine under 100 concurrent requests over every protocol, with the embedded model: each ends with the
 * text that its seed gives undisturbed, and none is lost. On a GPU texts may part from that at near ties, and nowhere
 * else. FAULT_ROUNDS=10 is the long form (npm run test:fault-long).
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Answer, AnyProtocol, type Job, SMALL_LETTERS, WAYS } from '../support/any-protocol.js'
import { GatewayProcess, onlyRung } from '../support/gateway-process.js'
import { Killer, killMoments } from '../support/killer.js'
import { LadderAnswers } from '../support/ladder-answers.js'
import { HANG, LOSE_DEVICE, POISON_TOKEN } from '../support/poisonable-engine.js'
import { randoms } from '../support/randoms.js'
import { shippedKind } from '../support/test-device.js'

const ROUNDS = Number(process.env.FAULT_ROUNDS ?? 1)
const KILLS_A_ROUND = 2
const SEED = Number(process.env.FAULT_SEED ?? 1)

const PROMPTS = ['Tell me a story about a fox.', 'List five rivers.', 'What is 17 times 23?', 'Écris un poème 🦊.']

/**
 * Greedy and sampled, with and without a penalty for what is in the answer already, by a grammar and without: every
 * request is one of these.
 */
const JOBS: readonly Job[] = [0, 1, 2, 3, 4].flatMap((group) => PROMPTS.map((_, index) => jobOf(group, index)))

function jobOf(group: number, index: number): Job {
  return {
    content: PROMPTS[index] ?? '',
    ...(index === group % PROMPTS.length && { guided_regex: SMALL_LETTERS }),
    seed: group * PROMPTS.length + index,
    temperature: group === 0 ? 0 : 0.9,
    frequency_penalty: group % 2,
    maxTokens: 10 + (index % 3) * 2,
  }
}

/** The same with answers that no GPU is through with before its engine is harmed. */
const LONG_JOBS: readonly Job[] = JOBS.map((job) => ({ ...job, maxTokens: 48 }))

let box: GatewayProcess
let clients: AnyProtocol
/** Where texts may part at near ties. */
let ties: LadderAnswers | undefined

beforeAll(async () => {
  if (shippedKind() === 'cuda') ties = await LadderAnswers.open()
  box = await GatewayProcess.startShipped(onlyRung('int4'), 'poisonable-engine.ts').ready()
  clients = new AnyProtocol(box)
})

afterAll(async () => {
  clients.close()
  await box.close()
  await ties?.close()
})

/** One answer of every job, the protocols by turns. */
async function undisturbed(jobs: readonly Job[]): Promise<string[]> {
  const answers = await Promise.all(jobs.map((job, index) => clients.ask(index, job, () => undefined)))
  return answers.map(({ text }) => text)
}

/** What an answer must be where a job's text is usually this one. */
async function required(job: Job, usual: string, text: string): Promise<string> {
  const allowed = text !== usual && (await ties?.gives(job, [{ variant: 'smollm2:int4', from: 0 }], text))
  return allowed ? text : usual
}

/** Asks every job in every way at the same time; all must succeed. */
function askAll(onNews: () => void): Promise<{ job: Job; index: number; answer: Answer }[]> {
  return Promise.all(
    JOBS.flatMap((job, index) =>
      Array.from({ length: WAYS }, async (_, way) => ({
        job,
        index,
        answer: await clients.ask(way, job, onNews),
      })),
    ),
  )
}

/** A request that kills the engine as often as it is given it. */
function askPoison(): Promise<Response> {
  return fetch(`${box.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'chat', prompt: [504, 2000, POISON_TOKEN] }),
  })
}

describe('kill -9 of the engine', { timeout: 180_000 * ROUNDS }, () => {
  it(`${ROUNDS * KILLS_A_ROUND} times under ${JOBS.length * WAYS} requests loses none and changes no text`, async () => {
    const random = randoms(SEED)
    const expected = await undisturbed(JOBS)
    for (const text of expected) expect(text.length).toBeGreaterThan(5)
    let degraded = 0
    for (let round = 0; round < ROUNDS; round++) {
      // All that streams is about 800 events, fewer where several tokens come in one.
      const killer = new Killer(box, killMoments(random, KILLS_A_ROUND, 250))
      const answers = await askAll(killer.onNews)
      expect(killer.kills).toBe(KILLS_A_ROUND)
      for (const { job, index, answer } of answers) {
        const text = await required(job, expected[index] ?? '', answer.text)
        expect({ round, index, text: answer.text }).toEqual({ round, index, text })
        expect(answer.completionTokens).toBe(job.maxTokens)
        degraded += answer.degraded
      }
    }
    if (ties) console.log(`${ties.parted} of ${ROUNDS * JOBS.length * WAYS} texts parted at near ties`)
    expect(degraded).toBeGreaterThan(0)
    expect(box.enginePids).toHaveLength(1 + ROUNDS * KILLS_A_ROUND)
  })

  it('is counted', async () => {
    const metrics = await (await fetch(`${box.url}/metrics`)).text()
    expect(metrics).toMatch(/^edgeshift_failovers_total\{cause="engine_failed"\} [1-9]/m)
    expect(metrics).toMatch(/^edgeshift_replayed_tokens_total [1-9]/m)
    expect(metrics).not.toMatch(/outcome="(?!ok")/)
    expect(metrics).toMatch(/^edgeshift_num_requests_in_flight 0$/m)
  })
})

/** Asks every job once; when 20 events were told, something happens to the engine that ends it. */
async function askThrough(harm: () => void): Promise<void> {
  const expected = await undisturbed(LONG_JOBS)
  const engines = box.enginePids.length
  let news = 0
  const answers = await Promise.all(
    LONG_JOBS.map((job, index) =>
      clients.ask(index, job, () => {
        if (++news === 20) harm()
      }),
    ),
  )
  for (const [index, { text }] of answers.entries()) {
    expect(text).toBe(await required(LONG_JOBS[index] as Job, expected[index] ?? '', text))
  }
  expect(answers.reduce((sum, { degraded }) => sum + degraded, 0)).toBeGreaterThan(0)
  expect(box.enginePids.length).toBe(engines + 1)
}

/** Tells the engine that runs now what is to go wrong in its next step. */
const inNextStep = (file: string) => (): void => writeFileSync(join(box.tmp, file), '')

/** Runs with the configuration edited, once gateway and engine have the edit. */
async function edited(edit: (text: string) => string, run: () => Promise<void>): Promise<void> {
  const file = join(box.tmp, 'models.yaml')
  const text = readFileSync(file, 'utf8')
  const reloads = (): number => box.log.filter(({ msg }) => msg === 'configuration reloaded').length
  const before = reloads()
  writeFileSync(file, edit(text))
  await box.until(() => reloads() === before + 2, 'both have the edit')
  await run()
  writeFileSync(file, text)
  await box.until(() => reloads() === before + 4, 'both have the old text')
}

/** Why engines said that they cannot go on. */
const reasons = (): unknown[] =>
  box.log.flatMap(({ msg, err }) => (msg === 'a device is lost' ? [(err as { message: string }).message] : []))

/** Signals that engines ended by; null: none. */
const ends = (): unknown[] =>
  box.log.flatMap(({ msg, signal }) => (msg === 'the engine ended; it is restarted' ? [signal] : []))

describe('an engine that goes wrong', { timeout: 180_000 }, () => {
  it('because its device fails ends, and its requests go on with their texts on the next', async () => {
    await askThrough(inNextStep(LOSE_DEVICE))
    expect(reasons().at(-1)).toBe('an illegal memory access was encountered')
  })

  it('because a step hangs ends after step_timeout, and its requests go on with their texts on the next', async () => {
    const brief = (text: string): string => `${text}\nscheduler: { step_timeout: 4s }\n`
    await edited(brief, () => askThrough(inNextStep(HANG)))
    expect(reasons().at(-1)).toMatch(/^a step with \d+ sequences has made no progress for 4000 ms$/)
    // By its own hand, so that a request which does this each time is found as fast as one that crashes it.
    expect(ends().at(-1)).toBe('SIGALRM')
  })

  it('because it is stopped (SIGSTOP) is killed after engine_timeout, and its requests go on with their texts on the next', async () => {
    const brief = (text: string): string => text.replace(/^server:\n/m, 'server:\n  engine_timeout: 6s\n')
    await edited(brief, () => askThrough(() => process.kill(box.enginePids.at(-1) ?? 0, 'SIGSTOP')))
    expect(box.log.some(({ msg }) => msg === 'the engine does not answer')).toBe(true)
  })
})

describe('a poison request (long form)', { timeout: 400_000 }, () => {
  it.skipIf(ROUNDS === 1)('among 100 is refused alone', async () => {
    const expected = await undisturbed(JOBS)
    const started = box.enginePids.length
    let poison: Promise<Response> | undefined
    let news = 0
    const answers = await askAll(() => {
      if (++news === 100) poison = askPoison()
    })
    const refusal = await poison
    expect([refusal?.status, await refusal?.json()]).toMatchObject([422, { error: { code: 'poison_request' } }])
    for (const { job, index, answer } of answers) {
      expect(answer.text).toBe(await required(job, expected[index] ?? '', answer.text))
    }
    expect(box.enginePids.length - started).toBeLessThanOrEqual(3)
  })
})
