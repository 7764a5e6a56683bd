import { pino } from 'pino'
import {
  FinishReason,
  SamplingParams,
  type SequenceDelta,
  type Submit,
  VariantState,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { EngineDevice } from '../../engine/device.js'
import { Engine } from '../../engine/engine.js'
import { KvArena } from '../../engine/kv/arena.js'
import { MemoryLedger } from '../../engine/residency/ledger.js'
import type { SequenceOwner } from '../../engine/scheduler/sequence.js'
import type { SchedulerLimits } from '../../engine/scheduler/scheduler.js'
import type { StepExecutor } from '../../engine/step/executor.js'
import { FakeExecutor, type FakeMemory } from './fake-executor.js'

/** Vocabulary of fake models. */
export const FAKE_VOCAB = 1000

/** An engine with one device and one variant "fake:int4" whose blocks take one KV unit. */
export interface FakeEngine {
  engine: Engine
  device: EngineDevice
  executor: StepExecutor
}

/** Overrides of the small defaults. */
export interface FakeEngineOptions {
  limits?: Partial<SchedulerLimits>
  blocks?: number
  maxWaiting?: number
  depth?: number
  clock?: () => number
  executor?: StepExecutor
  onDeviceFailed?: (error: unknown) => void
}

export function fakeEngine(options: FakeEngineOptions = {}): FakeEngine {
  const clock = options.clock ?? (() => performance.now())
  const log = pino({ level: 'silent' })
  const engine = new Engine({ version: 'test', maxWaiting: options.maxWaiting ?? 64, clock, log })
  const limits = {
    maxNumSeqs: 8,
    maxBatchTokens: 32,
    blockSize: 4,
    maxModelLen: 64,
    prefixCaching: true,
    ...options.limits,
  }
  const arena = new KvArena((options.blocks ?? 64) * 256, 4 * 256)
  const events = { deviceFailed: options.onDeviceFailed ?? (() => {}), sequenceFinished: engine.sequenceFinished }
  const description = { id: 'cpu0', kind: 'cpu' as const, name: 'fake' }
  const device = new EngineDevice(description, new MemoryLedger(1e9), arena, {
    clock,
    log,
    events,
    depth: options.depth ?? 1,
  })
  engine.devices.push(device)
  const memory: FakeMemory = new Map()
  const executor = options.executor ?? new FakeExecutor(memory, limits.blockSize, FAKE_VOCAB)
  engine.variants.set('fake:int4', {
    name: 'fake:int4',
    model: 'fake',
    precision: 'int4',
    device: 'cpu0',
    maxModelLen: limits.maxModelLen,
    vocabSize: FAKE_VOCAB,
    state: VariantState.READY,
    error: '',
    weightBytes: 1000,
    resident: device.addVariant(executor, 256, limits),
  })
  return { engine, device, executor }
}

/** A submit with neutral sampling. */
export function submitOf(sequenceId: number, prompt: number[], overrides: Partial<Submit> = {}): Submit {
  return {
    sequenceId,
    variant: 'fake:int4',
    prompt,
    sampling: neutralSampling(),
    maxTokens: 8,
    priority: 0,
    tenant: '',
    deadlineMs: 0,
    traceparent: '',
    replayedTokens: 0,
    promptLogprobs: false,
    ...overrides,
  }
}

export function neutralSampling(overrides: Partial<SamplingParams> = {}): SamplingParams {
  return SamplingParams.fromPartial({ topP: 1, repetitionPenalty: 1, ...overrides })
}

/** Gathers one sequence's deltas and fails on anything after its end. */
export class Collector implements SequenceOwner {
  blockedSince: number | undefined
  readonly tokens: number[] = []
  readonly deltas: SequenceDelta[] = []
  readonly done: Promise<SequenceDelta>
  end: SequenceDelta | undefined
  private resolveDone: (delta: SequenceDelta) => void = () => {}

  constructor() {
    this.done = new Promise((resolve) => (this.resolveDone = resolve))
  }

  deliver(delta: SequenceDelta): void {
    if (this.end) throw new Error(`sequence ${delta.sequenceId} delivered after its end`)
    this.deltas.push(delta)
    this.tokens.push(...delta.tokens)
    if (delta.finishReason === FinishReason.UNSPECIFIED) return
    this.end = delta
    this.resolveDone(delta)
  }
}
