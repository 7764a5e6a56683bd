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
import { KV_UNIT_BYTES } from '../../engine/native.js'
import { MemoryLedger } from '../../engine/residency/ledger.js'
import type { SequenceOwner } from '../../engine/scheduler/sequence.js'
import type { SchedulerLimits } from '../../engine/scheduler/limits.js'
import type { StepExecutor } from '../../engine/step/executor.js'
import { FakeExecutor } from './fake-executor.js'

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
  maxWaitingPerTenant?: number
  depth?: number
  stepTimeoutMs?: number
  interactiveGoalMs?: number
  clock?: () => number
  /** Instead of the fake model, with its own block and vocabulary sizes. */
  model?: { executor: StepExecutor; blockBytes: number; vocabSize: number }
  onDeviceFailed?: (error: unknown) => void
}

export function fakeEngine(options: FakeEngineOptions = {}): FakeEngine {
  const clock = options.clock ?? (() => performance.now())
  const log = pino({ level: 'silent' })
  const { maxWaiting = 64, maxWaitingPerTenant } = options
  const engine = new Engine({ version: 'test', maxWaiting, maxWaitingPerTenant, clock, log })
  const limits = {
    maxNumSeqs: 8,
    maxBatchTokens: 32,
    blockSize: 4,
    maxModelLen: 64,
    prefixCaching: true,
    ...options.limits,
  }
  const blockBytes = options.model?.blockBytes ?? KV_UNIT_BYTES
  const arena = new KvArena((options.blocks ?? 64) * blockBytes, 4 * blockBytes)
  const events = { deviceFailed: options.onDeviceFailed ?? (() => {}), sequenceFinished: engine.sequenceFinished }
  const description = { id: 'cpu0', kind: 'cpu' as const, name: 'fake' }
  const device = new EngineDevice(description, new MemoryLedger(1e9), arena, {
    clock,
    log,
    events,
    depth: options.depth ?? 1,
    stepTimeoutMs: options.stepTimeoutMs ?? 60_000,
    interactiveGoalMs: options.interactiveGoalMs ?? 0,
  })
  engine.devices.push(device)
  const executor = options.model?.executor ?? new FakeExecutor(new Map(), limits.blockSize, FAKE_VOCAB)
  engine.variants.set('fake:int4', {
    name: 'fake:int4',
    model: 'fake',
    precision: 'int4',
    device: 'cpu0',
    maxModelLen: limits.maxModelLen,
    vocabSize: options.model?.vocabSize ?? FAKE_VOCAB,
    state: VariantState.READY,
    error: '',
    weightBytes: 1000,
    roundingError: 0,
    neededBytes: 1000,
    pinned: false,
    loads: 1,
    origin: 'files',
    loadMs: 0,
    resident: device.addVariant(executor, blockBytes, limits),
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
    weight: 1,
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
