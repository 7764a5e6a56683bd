/**
 * Two devices of one gateway, a model on each. One is lost in mid-answer and cannot be opened any more: its streams go on
 * on the other, beside those that are there, with their texts; when it is back, the model is served there again. On two
 * GPUs where there are two, and on two CPU devices.
 */
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { AnyProtocol, type Job, WAYS } from '../support/any-protocol.js'
import { GatewayProcess } from '../support/gateway-process.js'
import { LadderAnswers } from '../support/ladder-answers.js'
import { LOST_DEVICE } from '../support/losable-engine.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { cudaDevices } from '../support/test-device.js'

const DEVICES = {
  cpu: ['{ id: one, kind: cpu, threads: 1, memory_gb: 1 }', '{ id: two, kind: cpu, threads: 2, memory_gb: 1 }'],
  cuda: ['{ id: one, kind: cuda, index: 0, memory_gb: 2 }', '{ id: two, kind: cuda, index: 1, memory_gb: 2 }'],
}
/** What tells the first from the second. */
const FIRST = { cpu: { threads: 1 }, cuda: { index: 0 } }
const GPUS = cudaDevices()

const config = (kind: 'cpu' | 'cuda'): string => {
  const rung = `max_model_len: 256, variants: [{ precision: int4, path: ${JSON.stringify(SMOLLM2_FILE)} }]`
  return `
server: { http: "127.0.0.1:0", grpc: "127.0.0.1:0", engine_wait: 60s, failover_wait: 60s }
devices: [${DEVICES[kind].join(', ')}]
models:
  - { id: left, tags: [chat], ${rung}, placement: { devices: [one, two] } }
  - { id: right, ${rung}, placement: { devices: [two, one] } }
`
}

/** Long enough that the device is lost in the middle of them: a GPU takes a few milliseconds for 24 tokens. */
const MAX_TOKENS = { cpu: 24, cuda: 160 }

const jobsOf = (kind: 'cpu' | 'cuda'): readonly Job[] =>
  ['left', 'right'].flatMap((model) =>
    ['Tell me a story about a fox.', 'List five rivers.'].map((content, seed) => ({
      model,
      content,
      seed,
      temperature: 0.9 * seed,
      frequency_penalty: seed,
      maxTokens: MAX_TOKENS[kind],
    })),
  )

const closing: (() => Promise<void>)[] = []
afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close()
})

interface Started {
  box: GatewayProcess
  /** Asks every job in every way at once; its texts, and how many answers went on after a failure. */
  ask: (onNews?: () => void) => Promise<{ texts: string[]; degraded: number }>
}

async function start(kind: 'cpu' | 'cuda'): Promise<Started> {
  const box = await GatewayProcess.startShipped(() => config(kind), 'losable-engine.ts').ready()
  closing.push(() => box.close())
  const clients = new AnyProtocol(box)
  closing.push(async () => clients.close())
  const asked = jobsOf(kind).flatMap((job) => Array.from({ length: WAYS }, (_, way) => ({ job, way })))
  const ask = async (onNews = (): void => undefined) => {
    const answers = await Promise.all(asked.map(({ job, way }) => clients.ask(way, job, onNews)))
    return {
      texts: answers.map(({ text }) => text),
      degraded: answers.reduce((sum, answer) => sum + answer.degraded, 0),
    }
  }
  return { box, ask }
}

/** The device of each model; undefined for one that is not in memory. */
async function places({ url }: GatewayProcess): Promise<Record<string, string>> {
  const answer = (await (await fetch(`${url}/admin/models`)).json()) as {
    variants: { model: string; device: string }[]
  }
  return Object.fromEntries(answer.variants.map(({ model, device }) => [model, device]))
}

/** Texts that are neither the expected ones nor part from them at near ties of a GPU. */
async function wrong(kind: 'cpu' | 'cuda', texts: readonly string[], expected: readonly string[]): Promise<string[]> {
  const different = texts.flatMap((text, i) =>
    text === expected[i] ? [] : [{ job: jobsOf(kind)[Math.floor(i / WAYS)], text }],
  )
  if (kind === 'cpu' || different.length === 0) return different.map(({ text }) => text)
  const answers = await LadderAnswers.open(kind)
  const left: string[] = []
  for (const { job, text } of different) {
    // oxlint-disable-next-line no-await-in-loop -- few
    if (!job || !(await answers.gives(job, [{ variant: 'smollm2:int4', from: 0 }], text))) left.push(text)
  }
  console.log(`${answers.parted} of ${texts.length} texts parted at near ties`)
  await answers.close()
  return left
}

describe.each(['cpu', 'cuda'] as const)('two devices of kind %s', (kind) => {
  it.skipIf(kind === 'cuda' && GPUS < 2)(
    'one that is lost leaves its streams to the other, and takes its model again when it is back (GPUs: skipped where there are not two)',
    async () => {
      const { box, ask } = await start(kind)
      expect(await places(box)).toEqual({ left: 'one', right: 'two' })
      const expected = (await ask()).texts
      for (const text of expected) expect(text.length).toBeGreaterThan(5)
      let news = 0
      const lossy = await ask(() => {
        if (++news === 40) writeFileSync(join(box.tmp, LOST_DEVICE), JSON.stringify(FIRST[kind]))
      })
      expect(await wrong(kind, lossy.texts, expected)).toEqual([])
      expect(lossy.degraded).toBeGreaterThan(0)
      expect(await places(box)).toEqual({ left: 'two', right: 'two' })
      expect(box.enginePids).toHaveLength(2)
      expect(box.log.map(({ msg }) => msg)).toContain('a device is lost')
      expect(box.log.filter(({ msg }) => msg === 'the device could not be opened')).toMatchObject([{ device: 'one' }])

      rmSync(join(box.tmp, LOST_DEVICE))
      news = 0
      const back = await ask(() => {
        if (++news === 40) process.kill(box.enginePids.at(-1) ?? 0, 'SIGKILL')
      })
      expect(await wrong(kind, back.texts, expected)).toEqual([])
      expect(await places(box)).toEqual({ left: 'one', right: 'two' })
      const metrics = await (await fetch(`${box.url}/metrics`)).text()
      expect(metrics).not.toMatch(/edgeshift_requests_total\{.*outcome="(?!ok")/)
    },
    120_000,
  )
})
