/**
 * kill -9 of the engine under requests over every protocol that run on all three rungs of the embedded model, some of
 * which then do not load again: what ran there goes on on another rung. Every text is, to the byte, what its rungs give one
 * after the other from the tokens told before (on a GPU near ties apart), and no request is lost. FAULT_ROUNDS=10 is the
 * long form, with 100 at a time.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Answer, AnyProtocol, type Job, SMALL_LETTERS, WAYS } from '../support/any-protocol.js'
import { GatewayProcess } from '../support/gateway-process.js'
import { Killer, killMoments } from '../support/killer.js'
import { LadderAnswers, type Segment } from '../support/ladder-answers.js'
import { randoms } from '../support/randoms.js'

const ROUNDS = Number(process.env.FAULT_ROUNDS ?? 1)
const KILLS_A_ROUND = 2
const SEED = Number(process.env.FAULT_SEED ?? 1)
const RUNGS = ['fp16', 'int8', 'int4']
const PROMPTS = ['Tell me a story about a fox.', 'List five rivers.', 'What is 17 times 23?', 'Écris un poème 🦊.']

/** Greedy and sampled, with and without a penalty, by a grammar and without, by turns on each rung. */
const JOBS: readonly Job[] = Array.from({ length: ROUNDS > 1 ? 20 : 9 }, (_, index) => ({
  model: `smollm2:${RUNGS[index % RUNGS.length]}`,
  content: PROMPTS[index % PROMPTS.length] ?? '',
  seed: index,
  temperature: index < 4 ? 0 : 0.9,
  frequency_penalty: index % 2,
  ...(index % 4 === 2 && { guided_regex: SMALL_LETTERS }),
  maxTokens: 10 + (index % 3) * 2,
}))

let box: GatewayProcess
let clients: AnyProtocol
let answers: LadderAnswers
const folder = mkdtempSync(join(tmpdir(), 'es-ladder-'))
/** Names the rungs whose loads fail, while it is there. */
const broken = join(folder, 'broken')

const config = (shipped: string): string =>
  shipped
    .replace(/^server:\n/m, 'server:\n  failover_wait: 60s\n  engine_wait: 60s\n')
    .replace(
      /^models:\n {2}- id: smollm2\n/m,
      'models:\n  - id: smollm2\n    policy: { recover_after: 100ms, min_dwell: 100ms }\n',
    )

beforeAll(async () => {
  answers = await LadderAnswers.open()
  box = await GatewayProcess.startShipped(config, 'fragile-engine.ts', { FAIL_LOADS: broken }).ready()
  clients = new AnyProtocol(box)
  await allReady()
}, 60_000)

afterAll(async () => {
  clients.close()
  await box.close()
  await answers.close()
  rmSync(folder, { recursive: true })
})

/** Brings every rung back. */
async function allReady(): Promise<void> {
  rmSync(broken, { force: true })
  for (const rung of RUNGS) {
    let ready = false
    while (!ready) {
      const response = await fetch(`${box.url}/admin/models/load`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: `smollm2:${rung}` }),
      })
      await response.text()
      ready = response.status === 200
    }
  }
}

/** Where the rung changed; a restart on the same rung changes nothing. */
function changes(segments: readonly Segment[]): Segment[] {
  return segments.filter(({ variant }, i) => variant !== segments[i - 1]?.variant)
}

/** What the answer must be; of a whole one, which does not say when its rung changed, what it may be. */
async function expected(job: Job, { text, segments }: Answer): Promise<string> {
  if (segments.length > 0) {
    const whole = changes(segments)
    return (await answers.gives(job, whole, text)) ? text : answers.textOf(job, whole)
  }
  const found = await search(job, [{ variant: job.model ?? '', from: 0 }], text)
  return found ? text : 'nothing that rungs could give one after the other'
}

/** Whether a text is what these segments give, or what they give with up to three changes of the rung behind them. */
async function search(job: Job, segments: readonly Segment[], text: string): Promise<boolean> {
  if (await answers.gives(job, segments, text)) return true
  const last = segments.at(-1)
  if (segments.length > 3 || !last) return false
  // The longest common beginning first: a rung that goes on alike hides where it began.
  for (const from of (await answers.beginnings(job, segments, text)).toReversed()) {
    for (const variant of RUNGS.map((rung) => `smollm2:${rung}`)) {
      if (variant !== last.variant && (await search(job, [...segments, { variant, from }], text))) return true
    }
  }
  return false
}

describe('kill -9 with rungs that do not come back', { timeout: 240_000 * ROUNDS }, () => {
  it(`${ROUNDS * KILLS_A_ROUND} times under ${JOBS.length * WAYS} requests on three rungs loses none, and every text is exact`, async () => {
    const random = randoms(SEED)
    const moved = new Map<string, number>()
    for (let round = 0; round < ROUNDS; round++) {
      const after = killMoments(random, KILLS_A_ROUND, 12 * JOBS.length)
      // At least one rung is left, and in the first round one is sure to go: the last kill counts, another may be too soon
      // behind it for a load to fail in between.
      const breaks = after.map(() => {
        const first = Math.floor(random() * RUNGS.length)
        const count = Math.max(round === 0 ? 1 : 0, Math.floor(random() * RUNGS.length))
        return Array.from({ length: count }, (__, i) => RUNGS[(first + i) % RUNGS.length] ?? '')
      })
      const killer = new Killer(box, after, (kill) => writeFileSync(broken, (breaks[kill] ?? []).join('\n')))
      const asked = JOBS.flatMap((job) =>
        Array.from({ length: WAYS }, async (_, way) => ({
          job,
          way,
          answer: await clients.ask(way, job, killer.onNews),
        })),
      )
      const all = await Promise.all(asked)
      expect(killer.kills).toBe(KILLS_A_ROUND)
      for (const { job, way, answer } of all) {
        expect(answer.completionTokens).toBe(job.maxTokens)
        const segments = changes(answer.segments)
        for (const { variant } of segments.slice(1)) moved.set(variant, (moved.get(variant) ?? 0) + 1)
        const what = { round, way, job: job.seed, segments }
        expect({ ...what, text: answer.text }).toEqual({ ...what, text: await expected(job, answer) })
      }
      await allReady()
    }
    console.log(`streams that went on on another rung: ${JSON.stringify(Object.fromEntries(moved))}`)
    if (answers.parted > 0) console.log(`${answers.parted} texts parted at near ties`)
    expect(moved.size).toBeGreaterThan(0)
    expect(box.enginePids.length).toBe(1 + ROUNDS * KILLS_A_ROUND)
    const metrics = await (await fetch(`${box.url}/metrics`)).text()
    expect(metrics).not.toMatch(/edgeshift_requests_total\{.*outcome="(?!ok")/)
    expect(metrics).toMatch(/^edgeshift_num_requests_in_flight 0$/m)
  })
})
