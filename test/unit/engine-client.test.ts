import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { spawnSync } from 'node:child_process'
import { Duplex } from 'node:stream'
import type { ClientDuplexStream } from '@grpc/grpc-js'
import * as fc from 'fast-check'
import { Registry } from 'prom-client'
import { describe, expect, it } from 'vitest'
import { MAX_REQUEST_BYTES } from '../../engine/config/index.js'
import { CommandQueue, commandBytes } from '../../gateway/engine-client/command-queue.js'
import { DEFAULT_RESTART_POLICY, decideRestart } from '../../gateway/engine-client/restart-policy.js'
import { removeStaleSocketDirs } from '../../gateway/engine-client/socket-dir.js'
import { EngineSession } from '../../gateway/engine-client/session.js'
import { StepHistogram } from '../../gateway/step-histogram.js'
import { Command, type SessionEvent, SessionRequest } from '../../proto/gen/edgeshift/v1/engine.js'
import { neutralSampling, submitOf } from '../support/fake-engine.js'

describe('decideRestart', () => {
  it.each([
    [0, 60_000, 0, { crashes: 1, delayMs: 100, crashLoop: false }],
    [4, 60_000, 0, { crashes: 1, delayMs: 100, crashLoop: false }],
    [4, 10, 16, { crashes: 1, delayMs: 100, crashLoop: false }],
    [1, 10, 15, { crashes: 2, delayMs: 200, crashLoop: false }],
    [4, 10, 0, { crashes: 5, delayMs: 1600, crashLoop: false }],
    [5, 10, 0, { crashes: 6, delayMs: 3200, crashLoop: true }],
    [40, 10, 0, { crashes: 41, delayMs: 30_000, crashLoop: true }],
  ])('after %d rapid crashes, %d ms of service and %d steps', (before, servedMs, steps, decision) => {
    expect(decideRestart(DEFAULT_RESTART_POLICY, before, { servedMs, steps })).toEqual(decision)
  })
})

describe('removeStaleSocketDirs', () => {
  it('removes only folders whose process is gone', () => {
    const parent = mkdtempSync(join(tmpdir(), 'es-test-'))
    const gone = spawnSync(process.execPath, ['-e', '']).pid
    const stale = `edgeshift-${gone}-abcdef`
    const names = [stale, `edgeshift-${process.pid}-abcdef`, 'edgeshift-x-abcdef', 'other']
    for (const name of names) mkdirSync(join(parent, name))
    writeFileSync(join(parent, stale, 'engine-1.sock'), '')
    expect(removeStaleSocketDirs(parent)).toEqual([join(parent, stale)])
    expect(names.map((name) => existsSync(join(parent, name)))).toEqual([false, true, true, true])
    rmSync(parent, { recursive: true })
  })
})

describe('StepHistogram', () => {
  it('exports cumulative buckets, sum and count per label set', async () => {
    const registry = new Registry()
    const histogram = new StepHistogram(registry, 'edgeshift_x_seconds', 'X.', [0.1, 1])
    const series = histogram.series({ model: 'a' })
    expect(histogram.series({ model: 'a' })).toBe(series)
    series.observe(0.1)
    series.observe(0.5, 3)
    series.observe(7)
    const lines = (await registry.metrics()).split('\n').filter((line) => line && !line.startsWith('# HELP'))
    expect(lines).toEqual([
      '# TYPE edgeshift_x_seconds histogram',
      'edgeshift_x_seconds_bucket{model="a",le="0.1"} 1',
      'edgeshift_x_seconds_bucket{model="a",le="1"} 4',
      'edgeshift_x_seconds_bucket{model="a",le="+Inf"} 5',
      'edgeshift_x_seconds_sum{model="a"} 8.6',
      'edgeshift_x_seconds_count{model="a"} 5',
    ])
  })
})

/** A prompt of so many tokens, each of the largest id that vocabularies come near. */
const promptOf = (tokens: number): number[] => Array.from({ length: tokens }, () => 2 ** 21 - 1)

const submitCommand = (...fields: Parameters<typeof submitOf>): Command => ({
  kind: { $case: 'submit', submit: submitOf(...fields) },
})

/** Everything of a queue, message by message. */
function messagesOf(queue: CommandQueue): Command[][] {
  const messages: Command[][] = []
  while (!queue.empty) messages.push(queue.take())
  return messages
}

describe('CommandQueue', () => {
  it('never takes a command for smaller than it is in a message', () => {
    const id = fc.nat(2 ** 28 - 1)
    const any32 = fc.integer({ min: 0, max: 2 ** 32 - 1 })
    const anyText = fc.string({ unit: 'binary' })
    const grammar = fc.option(
      fc.oneof(
        anyText.map((jsonSchema) => ({ kind: { $case: 'jsonSchema' as const, jsonSchema } })),
        anyText.map((regex) => ({ kind: { $case: 'regex' as const, regex } })),
        anyText.map((ebnf) => ({ kind: { $case: 'ebnf' as const, ebnf } })),
        fc.array(anyText, { size: '+2' }).map((texts) => ({ kind: { $case: 'choice' as const, choice: { texts } } })),
      ),
      { nil: undefined },
    )
    const numbers = { maxTokens: any32, deadlineMs: any32, replayedTokens: any32, weight: any32 }
    const fields = fc.record({
      ...numbers,
      priority: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
      variant: fc.string({ unit: 'binary' }),
      tenant: fc.string({ unit: 'binary' }),
      traceparent: fc.string(),
      promptLogprobs: fc.boolean(),
      grammar,
      sampling: fc
        .record({
          seed: fc.maxSafeNat(),
          topK: any32,
          minTokens: any32,
          topLogprobs: any32,
          temperature: fc.float(),
          minP: fc.float(),
          presencePenalty: fc.float(),
          frequencyPenalty: fc.float(),
          stopTokenIds: fc.array(id),
          logitBias: fc.array(fc.tuple(id, fc.float())).map((entries) => new Map(entries)),
        })
        .map(neutralSampling),
    })
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.array(id), fields, (sequenceId, prompt, overrides) => {
        const command = submitCommand(sequenceId, prompt, overrides)
        const { length } = SessionRequest.encode({ commands: [command] }).finish()
        expect(length).toBeLessThanOrEqual(commandBytes(command))
      }),
    )
  })

  it('gives messages that the engine takes, of everything in order', () => {
    const queue = new CommandQueue()
    const prompt = promptOf(131_072)
    for (let id = 1; id <= 100; id++) queue.push(submitCommand(id, prompt))
    for (let id = 1; id <= 100; id++) queue.push({ kind: { $case: 'cancel', cancel: { sequenceId: id } } })
    const messages = messagesOf(queue)
    const sizes = messages.map((commands) => SessionRequest.encode({ commands }).finish().length)
    expect(Math.max(...sizes)).toBeLessThan(MAX_REQUEST_BYTES / 2)
    const told = messages.flat().map(({ kind }) => {
      if (kind?.$case === 'submit') return kind.submit.sequenceId
      return kind?.$case === 'cancel' ? -kind.cancel.sequenceId : undefined
    })
    const ids = Array.from({ length: 100 }, (_, i) => i + 1)
    expect(told).toEqual([...ids, ...ids.map((id) => -id)])
  })

  it('gives small commands as one message, and a large one a message of its own', () => {
    const queue = new CommandQueue()
    for (let id = 1; id <= 1000; id++) queue.push(submitCommand(id, [1, 2, 3]))
    queue.push(submitCommand(1001, promptOf(1_000_000)))
    queue.push(submitCommand(1002, [1]))
    expect(messagesOf(queue).map(({ length }) => length)).toEqual([1000, 1, 1])
  })

  it('is full by the number of commands and by their bytes, until they are taken', () => {
    const queue = new CommandQueue()
    for (let id = 1; id < 4096; id++) queue.push(submitCommand(id, []))
    expect(queue.full).toBe(false)
    queue.push(submitCommand(4096, []))
    expect(queue.full).toBe(true)
    messagesOf(queue)
    expect(queue.full).toBe(false)
    // The largest request that there is goes in whole: 128 choices of a million tokens.
    const longest = promptOf(1_000_000)
    for (let id = 1; id <= 128; id++) queue.push(submitCommand(id, longest))
    expect(queue.full).toBe(false)
    for (let id = 129; id <= 136; id++) queue.push(submitCommand(id, longest))
    expect(queue.full).toBe(true)
    messagesOf(queue)
    expect(queue.full).toBe(false)
  })
})

describe('EngineSession', () => {
  /** A session on a stream that takes one message and then no more before `taken` is called. */
  function slowSession() {
    const messages: SessionRequest[] = []
    let taken = (): void => undefined
    const stream = new Duplex({
      objectMode: true,
      highWaterMark: 1,
      read: () => undefined,
      write: (message: SessionRequest, _encoding, done) => {
        messages.push(message)
        taken = done
      },
    })
    const ends: string[] = []
    const session = new EngineSession(stream as unknown as ClientDuplexStream<SessionRequest, SessionEvent>, {
      onStatus: () => undefined,
      onStep: () => undefined,
      onEnd: (reason) => ends.push(reason),
    })
    return { session, messages, ends, taken: () => taken() }
  }

  const listener = { onDelta: () => undefined, onLost: () => undefined }
  const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

  it('writes no more than the stream takes, and the rest when it drains', async () => {
    const { session, messages, taken } = slowSession()
    // A message each.
    const { sequenceId: _, ...submission } = submitOf(0, promptOf(200_000))
    for (let i = 0; i < 3; i++) session.submit(submission, listener)
    await nextTurn()
    expect(messages).toHaveLength(1)
    session.cancel(1)
    taken()
    await nextTurn()
    expect(messages).toHaveLength(2)
    taken()
    await nextTurn()
    expect(messages.map(({ commands }) => commands.map(({ kind }) => kind?.$case))).toEqual([
      ['submit'],
      ['submit'],
      ['submit', 'cancel'],
    ])
  })

  it('refuses what no message has room for, and goes on', async () => {
    const { session, messages, ends } = slowSession()
    const { sequenceId: _, ...tooLong } = submitOf(0, promptOf(2_200_000))
    expect(() => session.submit(tooLong, listener)).toThrow(
      expect.objectContaining({ code: 'context_length_exceeded', message: expect.stringContaining('2200000 tokens') }),
    )
    expect(session.size).toBe(0)
    session.submit({ ...tooLong, prompt: promptOf(1_000_000) }, listener)
    await nextTurn()
    expect(messages).toHaveLength(1)
    expect(ends).toEqual([])
  })
})
