/** Residencies over fake devices that a test file starts, and requests to them. */
import { afterEach, expect } from 'vitest'
import { FinishReason, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Sequence } from '../../engine/scheduler/sequence.js'
import { Collector, FAKE_VOCAB, submitOf } from './fake-engine.js'
import { fakeAnswer } from './fake-executor.js'
import { type FakeNativeDevice, type FakeResidency, fakeResidency, type FakeResidencyOptions } from './fake-native.js'

/** Starts residencies and stops those of a test after it. */
export function fakeResidencies(): (options: FakeResidencyOptions) => FakeResidency {
  const started: FakeResidency[] = []
  afterEach(async () => {
    for (const { engine, residency, natives } of started.splice(0)) {
      for (const { gate } of natives.values()) gate?.open()
      await engine.stop(FinishReason.CANCELLED)
      await residency.stop()
    }
  })
  return (options) => {
    const fake = fakeResidency(options)
    started.push(fake)
    return fake
  }
}

/** A request that was made. */
export interface Asked {
  collector: Collector
  /** Undefined where it was refused. */
  sequence: Sequence | undefined
  prompt: number[]
}

let ids = 0

/** Asks for a few tokens of a variant. */
export function ask({ engine }: FakeResidency, variant: string, overrides: Partial<Submit> = {}): Asked {
  const collector = new Collector()
  const id = ids++
  const prompt = [id % FAKE_VOCAB, 7]
  const sequence = engine.submit(submitOf(id, prompt, { variant, maxTokens: 4, ...overrides }), collector)
  return { collector, sequence, prompt }
}

/** Its end, after a check of its text. */
export async function answered({ collector, prompt }: Asked): Promise<FinishReason> {
  const { finishReason } = await collector.done
  expect(collector.tokens).toEqual(fakeAnswer(prompt, collector.tokens.length, 0, FAKE_VOCAB))
  return finishReason
}

/** A request that has begun and whose reader is slow: it keeps its variant at work. */
export async function held(fake: FakeResidency, variant: string): Promise<Asked> {
  const one = ask(fake, variant, { maxTokens: 28 })
  while (one.collector.tokens.length === 0) await turnOfEventLoop()
  pause(fake, [one], true)
  return one
}

/** Requests that together use more KV memory than so many bytes, and whose readers are slow: they keep it. */
export async function heldKv(fake: FakeResidency, variant: string, bytes: number): Promise<Asked[]> {
  const asked = Array.from({ length: 8 }, () => ask(fake, variant, { maxTokens: 28 }))
  while (usedKvBytes(fake) <= bytes) await turnOfEventLoop()
  pause(fake, asked, true)
  return asked
}

/** Sets whether the readers of requests are slow. */
export function pause({ engine }: FakeResidency, asked: readonly Asked[], paused: boolean): void {
  for (const { sequence } of asked) if (sequence) engine.setPaused(sequence, paused)
}

/** KV memory of the first device that sequences use. */
export function usedKvBytes(fake: FakeResidency): number {
  return fake
    .slot()
    .state()
    .residents.reduce((sum, resident) => sum + resident.usedKvBytes, 0)
}

/** A device's fake. */
export function native({ natives }: FakeResidency, id = 'cpu0'): FakeNativeDevice {
  const found = natives.get(id)
  if (!found) throw new Error(`no device ${id}`)
  return found
}

/** Lets everything happen that waits for nothing else. */
export const turnOfEventLoop = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
