import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ClientDuplexStream } from '@grpc/grpc-js'
import { pino } from 'pino'
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import {
  type EngineClient,
  FinishReason,
  type DescribeResponse,
  type SequenceDelta,
  type SessionEvent,
  type SessionRequest,
  type Submit,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { type Listener, listen } from '../../engine/server/listen.js'
import { EngineService } from '../../engine/server/service.js'
import { openClient } from '../../gateway/engine-client/connect.js'
import { EngineSession } from '../../gateway/engine-client/session.js'
import { fakeAnswer } from '../support/fake-executor.js'
import { FAKE_VOCAB, type FakeEngine, fakeEngine, neutralSampling, submitOf } from '../support/fake-engine.js'

/** A client session that keeps every event. */
class TestSession {
  readonly events: SessionEvent[] = []
  readonly call: ClientDuplexStream<SessionRequest, SessionEvent>
  readonly ended: Promise<number>
  private readonly waiters: (() => void)[] = []

  constructor(client: EngineClient) {
    this.call = client.session()
    this.call.on('data', (event: SessionEvent) => {
      this.events.push(event)
      for (const wake of this.waiters.splice(0)) wake()
    })
    this.ended = new Promise((resolve) => this.call.on('error', (error) => resolve(Number(Reflect.get(error, 'code')))))
  }

  submit(submit: Submit): void {
    this.call.write({ commands: [{ kind: { $case: 'submit', submit } }] })
  }

  deltas(id: number): SequenceDelta[] {
    const all = this.events.flatMap(({ kind }) => (kind?.$case === 'step' ? kind.step.deltas : []))
    return all.filter((delta) => delta.sequenceId === id)
  }

  tokens(id: number): number[] {
    return this.deltas(id).flatMap((delta) => delta.tokens)
  }

  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.waiters.push(resolve))
  }

  async end(id: number): Promise<SequenceDelta> {
    await this.until(() => this.deltas(id).some((delta) => delta.finishReason !== FinishReason.UNSPECIFIED))
    const [last] = this.deltas(id).slice(-1)
    if (!last) throw new Error('unreachable')
    return last
  }
}

const folder = mkdtempSync(join(tmpdir(), 'edgeshift-'))
const socket = join(folder, 'engine.sock')
let fake: FakeEngine
let service: EngineService
let listener: Listener
let client: EngineClient

beforeEach(async () => {
  fake = fakeEngine({ limits: { maxModelLen: 4096, maxNumSeqs: 32, maxBatchTokens: 64 }, blocks: 4096, maxWaiting: 8 })
  const asset = { name: 'tokenizer.json', data: new Uint8Array(2.5 * 2 ** 20).fill(7) }
  const log = pino({ level: 'silent' })
  service = new EngineService(fake.engine, async (model) => (model === 'fake' ? [asset] : undefined), log)
  listener = await listen(socket, service.handlers)
  client = openClient(socket)
})

afterEach(async () => {
  client.close()
  service.close()
  await listener.close()
  await fake.engine.stop(FinishReason.CANCELLED)
})

afterAll(() => rmSync(folder, { recursive: true }))

describe('engine session', () => {
  it('sends a status first, then one message per step with every sequence in it', async () => {
    const session = new TestSession(client)
    await session.until(() => session.events.length > 0)
    expect(session.events[0]?.kind?.$case).toBe('status')
    for (const id of [1, 2, 3]) session.submit(submitOf(id, [id, 20, 30], { maxTokens: 5 }))
    for (const id of [1, 2, 3]) {
      expect((await session.end(id)).finishReason).toBe(FinishReason.LENGTH)
      expect(session.tokens(id)).toEqual(fakeAnswer([id, 20, 30], 5, 0, FAKE_VOCAB))
    }
    expect(session.deltas(1)[0]?.start).toMatchObject({ cachedTokens: 0 })
    const steps = session.events.filter(({ kind }) => kind?.$case === 'step').length
    expect(steps).toBeLessThanOrEqual(7)
    session.call.end()
  })

  it('rejects what cannot run, with a code of the catalogue', async () => {
    const session = new TestSession(client)
    session.submit(submitOf(1, [1], { variant: 'nobody' }))
    session.submit(submitOf(2, [FAKE_VOCAB]))
    session.submit(
      submitOf(
        3,
        Array.from({ length: 5000 }, () => 1),
      ),
    )
    expect((await session.end(1)).error?.code).toBe('invalid_request')
    expect((await session.end(2)).error?.code).toBe('invalid_request')
    expect((await session.end(3)).error).toMatchObject({ code: 'context_length_exceeded' })
    expect((await session.end(3)).finishReason).toBe(FinishReason.REJECTED)
  })

  it('cancels on request and when the session goes away', async () => {
    const session = new TestSession(client)
    session.submit(submitOf(1, [1, 2], { maxTokens: 4000 }))
    session.submit(submitOf(2, [1, 2], { maxTokens: 4000 }))
    await session.until(() => session.tokens(2).length > 3)
    session.call.write({ commands: [{ kind: { $case: 'cancel', cancel: { sequenceId: 1 } } }] })
    expect((await session.end(1)).finishReason).toBe(FinishReason.CANCELLED)
    expect(fake.engine.running).toBe(1)
    session.call.cancel()
    await session.ended
    const observer = new TestSession(client)
    await observer.until(() =>
      observer.events.some(({ kind }) => kind?.$case === 'status' && kind.status.running === 0),
    )
    fake.device.checkInvariants()
  })

  it('200 sessions opened and dropped leave no sequence and no block', async () => {
    for (let cycle = 0; cycle < 200; cycle++) {
      const session = new TestSession(client)
      for (const id of [1, 2, 3]) session.submit(submitOf(id, [id, cycle % 7], { maxTokens: 4000 }))
      // Dropped after the status or in the middle of the answers.
      await session.until(() => session.events.length > cycle % 3)
      session.call.cancel()
      await session.ended
    }
    await vi.waitFor(() => expect(fake.engine.running + fake.engine.waiting).toBe(0))
    fake.device.checkInvariants()
  })

  it('stops scheduling for a reader that does not read, and goes on when it does', async () => {
    const session = new TestSession(client)
    session.call.pause()
    const sampling = neutralSampling({ topLogprobs: 20 })
    for (let id = 1; id <= 8; id++) session.submit(submitOf(id, [id, 2, 3], { maxTokens: 400, sampling }))
    const running = fake.device.residents[0]?.scheduler.running ?? []
    await vi.waitFor(() => expect(running.filter((s) => s.heldSince !== undefined)).toHaveLength(8), {
      timeout: 10_000,
    })
    session.call.resume()
    for (let id = 1; id <= 8; id++) {
      expect((await session.end(id)).finishReason).toBe(FinishReason.LENGTH)
      expect(session.tokens(id)).toEqual(fakeAnswer([id, 2, 3], 400, 0, FAKE_VOCAB))
    }
  })

  it('ends the session on a sequence id in use', async () => {
    const session = new TestSession(client)
    session.submit(submitOf(1, [1], { maxTokens: 4000 }))
    session.submit(submitOf(1, [1], { maxTokens: 4000 }))
    expect(await session.ended).toBe(3)
  })

  it('leaves no socket file when it closes', async () => {
    await listener.close()
    expect(existsSync(socket)).toBe(false)
  })

  it('describes itself and streams assets in chunks', async () => {
    const described = await new Promise<DescribeResponse>((resolve, reject) => {
      client.describe({}, (error, response) => (error ? reject(error) : resolve(response)))
    })
    expect(described.status?.variants[0]).toMatchObject({ name: 'fake:int4', maxModelLen: 4096 })
    let bytes = 0
    let chunks = 0
    for await (const chunk of client.getModelAssets({ model: 'fake', configDigest: '' })) {
      bytes += chunk.data.length
      chunks++
    }
    expect([bytes, chunks]).toEqual([2.5 * 2 ** 20, 3])
    const missing = client.getModelAssets({ model: 'other', configDigest: '' })
    await expect(missing[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: 5 })
  })
})

describe("the gateway's session", () => {
  it('outlives a turn that says more than one message may hold', async () => {
    const count = 40
    // Together 10 MB; too long for this engine, which answers each with a refusal.
    const { sequenceId: _, ...submission } = submitOf(
      0,
      Array.from({ length: 131_072 }, () => FAKE_VOCAB - 1),
    )
    const outcomes = await new Promise<string[]>((resolve) => {
      const heard: string[] = []
      const hear = (what: string): void => {
        if (heard.push(what) === count) resolve(heard)
      }
      const ignore = { onStatus: () => undefined, onStep: () => undefined, onEnd: () => undefined }
      const session = new EngineSession(client.session(), ignore)
      const hearing = {
        onDelta: ({ error }: SequenceDelta) => hear(error?.code ?? ''),
        onLost: ({ message }: Error) => hear(message),
      }
      for (let i = 0; i < count; i++) session.submit(submission, hearing)
    })
    expect(new Set(outcomes)).toEqual(new Set(['context_length_exceeded']))
  })
})
