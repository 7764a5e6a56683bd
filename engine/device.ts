import type { Logger } from 'pino'
import { BlockPool } from './kv/block-pool.js'
import type { KvArena } from './kv/arena.js'
import type { SwapSpace } from './kv/swap-space.js'
import type { MemoryLedger } from './residency/ledger.js'
import { BatchGovernor } from './scheduler/governor.js'
import { FairShare } from './scheduler/fair-share.js'
import type { SchedulerLimits } from './scheduler/limits.js'
import { noCounts, Scheduler, type SchedulerCounters } from './scheduler/scheduler.js'
import type { Sequence } from './scheduler/sequence.js'
import { Swapper } from './scheduler/swapper.js'
import type { StepExecutor } from './step/executor.js'
import { VariantRunner } from './step/runner.js'
import { StepLoop, type StepLoopEvents } from './step/step-loop.js'

/** What a device is, without its state. */
export interface DeviceDescription {
  id: string
  kind: 'cpu' | 'cuda'
  /** Marketing name. */
  name: string
}

/** Dependencies of a device. */
export interface DeviceOptions {
  clock: () => number
  log: Logger
  events: StepLoopEvents & { sequenceFinished(sequence: Sequence, now: number): void }
  /** Steps issued at once: 1, or 2 to overlap the host's work with the device's. */
  depth: number
  /** Longest time that one step may take, milliseconds; after it the device counts as lost. */
  stepTimeoutMs: number
  /** Longest time that interactive requests should wait for a token; 0 = no goal. */
  interactiveGoalMs: number
}

/** The ledger beside what was measured. */
export interface MemoryDrift {
  measuredBytes: number
  /** Measured less what the ledger says. */
  driftBytes: number
  alarm: boolean
}

/** What a scheduler counts, and the device time of its steps in microseconds. */
export interface StepCounters extends SchedulerCounters {
  deviceMicros: number
}

/** A variant whose weights are on a device. */
export interface ResidentVariant {
  readonly device: EngineDevice
  readonly scheduler: Scheduler
  readonly runner: VariantRunner
  readonly blockBytes: number
}

/** One device at work: its KV arena, its ledger and the loop that steps the variants on it. */
export class EngineDevice {
  readonly residents: ResidentVariant[] = []
  readonly loop: StepLoop
  readonly governor: BatchGovernor
  /** Undefined until it was measured. */
  drift: MemoryDrift | undefined
  private readonly share = new FairShare()
  /** Of variants that are not here any more. */
  private readonly past: StepCounters = { ...noCounts(), deviceMicros: 0 }

  constructor(
    readonly description: DeviceDescription,
    readonly ledger: MemoryLedger,
    readonly arena: KvArena,
    private readonly options: DeviceOptions,
    /** Host memory for preempted sequences; absent where they are computed again. */
    readonly swap?: SwapSpace,
  ) {
    this.loop = new StepLoop(options)
    this.governor = new BatchGovernor(options.interactiveGoalMs)
  }

  get running(): number {
    return this.residents.reduce((sum, { scheduler }) => sum + scheduler.running.length, 0)
  }

  get waiting(): number {
    return this.residents.reduce((sum, { scheduler }) => sum + scheduler.waiting.size, 0)
  }

  /** Starts to schedule a loaded variant. Throws RangeError when its blocks don't fit the arena's slabs. */
  addVariant(executor: StepExecutor, blockBytes: number, limits: SchedulerLimits): ResidentVariant {
    const pool = new BlockPool(this.arena, blockBytes)
    const finished = (sequence: Sequence, now: number): void => this.options.events.sequenceFinished(sequence, now)
    const swapper = this.swap && new Swapper(this.swap, blockBytes, limits.blockSize)
    const scheduler = new Scheduler(limits, this.arena, pool, this.share, finished, this.governor, swapper)
    const runner = new VariantRunner(scheduler, executor)
    const resident: ResidentVariant = { device: this, scheduler, runner, blockBytes }
    this.residents.push(resident)
    this.loop.add(runner)
    return resident
  }

  /** Forgets a variant without sequences; its KV memory is free. What it counted stays in `counters`. */
  removeVariant(resident: ResidentVariant): void {
    const at = this.residents.indexOf(resident)
    if (at < 0) return
    if (resident.scheduler.size > 0) throw new Error('a variant with sequences cannot be removed')
    this.loop.remove(resident.runner)
    this.residents.splice(at, 1)
    resident.scheduler.pool.close()
    addCounters(this.past, resident)
  }

  /** Of all variants that are or were here. */
  get counters(): Readonly<StepCounters> {
    const sum = { ...this.past }
    for (const resident of this.residents) addCounters(sum, resident)
    return sum
  }

  /** Throws when a pool's counts disagree with its blocks, or when an idle device still has blocks in use. */
  checkInvariants(): void {
    for (const { scheduler } of this.residents) {
      scheduler.pool.checkInvariant()
      const { used } = scheduler.pool.stats()
      if (scheduler.size === 0 && used > 0) throw new Error(`${used} KV blocks in use without a sequence`)
    }
    this.swap?.checkInvariant()
  }
}

function addCounters(sum: StepCounters, { scheduler: { counters }, runner }: ResidentVariant): void {
  sum.steps += counters.steps
  sum.stepTokens += counters.stepTokens
  sum.stepSequences += counters.stepSequences
  sum.preemptions += counters.preemptions
  sum.prefixQueries += counters.prefixQueries
  sum.prefixHits += counters.prefixHits
  sum.deviceMicros += runner.deviceMicros
}
