import { FinishReason, type SequenceError, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import type { KvArena } from '../kv/arena.js'
import { chainHash } from '../kv/block-hash.js'
import type { BlockPool } from '../kv/block-pool.js'
import type { StepResult } from '../native.js'
import type { FairShare } from './fair-share.js'
import { planEntry, type PlanEntry, type StepPlan } from './plan.js'
import { absorbRows } from './postprocess.js'
import { countAhead, QueuePace } from './queue-pace.js'
import { compareSequences, endOf, type Sequence } from './sequence.js'
import { WaitingQueue } from './waiting-queue.js'

/** Bounds of one variant's batches. */
export interface SchedulerLimits {
  /** Largest number of running sequences; slots of the executor. */
  maxNumSeqs: number
  /** Token budget of one step, at least maxNumSeqs. */
  maxBatchTokens: number
  /** Tokens per KV block. */
  blockSize: number
  maxModelLen: number
  prefixCaching: boolean
  /** Longer prompts have rotary tables that depend on their length, so what they cache does too; absent = none has. */
  ropeLimit?: number
}

/** Counters since the start. */
export interface SchedulerCounters {
  steps: number
  /** Tokens and sequences of all steps; divided by `steps` they give the mean batch. */
  stepTokens: number
  stepSequences: number
  preemptions: number
  /** Tokens looked up in the prefix cache, and of those found. */
  prefixQueries: number
  prefixHits: number
}

/** Counters of a scheduler that has done nothing yet. */
export function noCounts(): SchedulerCounters {
  return { steps: 0, stepTokens: 0, stepSequences: 0, preemptions: 0, prefixQueries: 0, prefixHits: 0 }
}

/** A held sequence keeps its slot and blocks this long when others need them, milliseconds. */
const HOLD_GRACE_MS = 1000
/** Share of the blocks left free when a sequence is admitted beside running ones, so that they can grow. */
const WATERMARK = 0.01

/**
 * Continuous batching for one variant. `plan` decides a step and takes its blocks, `complete` applies its results;
 * several plans may be open at once if their steps run in order. No effects beside `owner.deliver`.
 */
export class Scheduler {
  readonly counters = noCounts()
  readonly waiting: WaitingQueue
  /** Ordered by compareSequences: the last is preempted first. */
  readonly running: Sequence[] = []
  private readonly pace = new QueuePace()
  /** Of the executor; reuse is safe at once because it runs calls in order. */
  private readonly freeSlots: number[]

  constructor(
    readonly limits: SchedulerLimits,
    private readonly arena: KvArena,
    readonly pool: BlockPool,
    private readonly share: FairShare,
    private readonly onFinish: (sequence: Sequence, now: number) => void = () => {},
  ) {
    this.waiting = new WaitingQueue(share)
    this.freeSlots = Array.from({ length: limits.maxNumSeqs }, (_, i) => limits.maxNumSeqs - 1 - i)
  }

  /** Sequences not finished. */
  get size(): number {
    return this.running.length + this.waiting.size
  }

  /** Takes a validated sequence into the queue. */
  add(sequence: Sequence): void {
    this.share.enter(sequence.submit.tenant)
    this.waiting.push(sequence)
    sequence.holder = this
  }

  /**
   * Takes sequences out in the order of their arrival, to be run later: those that have not run yet, or all of them,
   * preempted.
   */
  withdraw(all: boolean): Sequence[] {
    if (all) for (const sequence of this.running.toReversed()) this.preempt(sequence)
    const out = [...this.waiting].filter(({ firstScheduledAt }) => all || firstScheduledAt === undefined)
    for (const sequence of out) {
      this.waiting.remove(sequence)
      this.share.leave(sequence.submit.tenant)
    }
    if (this.size === 0) this.arena.setStarving(this.pool, false)
    return out.toSorted((a, b) => a.arrival - b.arrival)
  }

  /** The next step, its blocks taken: decodes, then prefills, then admissions. Undefined when nothing can run now. */
  plan(now: number): StepPlan | undefined {
    const plan: StepPlan = { entries: [], admitted: [], tokens: 0 }
    this.makeWay()
    const preempted = this.counters.preemptions
    const runnable = this.running.filter((s) => s.heldSince === undefined && canStep(s))
    for (const sequence of runnable) if (isDecode(sequence)) this.extend(plan, sequence)
    for (const sequence of runnable) if (!isDecode(sequence)) this.extend(plan, sequence)
    // Freed blocks belong to those still running; newcomers wait for a step without preemption.
    if (this.counters.preemptions === preempted) this.admitAll(plan, now)
    for (const { sequence, count } of plan.entries) this.share.charge(sequence.submit.tenant, count)
    if (plan.entries.length === 0) return undefined
    this.counters.steps++
    this.counters.stepTokens += plan.tokens
    this.counters.stepSequences += plan.entries.length
    return plan
  }

  /** Applies the results of the oldest open plan. */
  complete(plan: StepPlan, result: StepResult, now: number): void {
    let row = 0
    for (const entry of plan.entries) {
      const { sequence } = entry
      const rows = entry.scoreTo - entry.scoreFrom + (entry.sample ? 1 : 0)
      if (sequence.epoch === entry.epoch && sequence.state === 'running') {
        this.publish(sequence, entry.first + entry.count)
        const reason = absorbRows(entry, result, row)
        if (reason !== FinishReason.UNSPECIFIED) this.remove(sequence, now)
      }
      row += rows
    }
  }

  /** The step of the oldest open plan failed: its sequences end with the error and no cached block is trusted. */
  fail(plan: StepPlan, error: SequenceError, now: number): void {
    for (const { sequence, epoch } of plan.entries) {
      if (sequence.epoch === epoch) this.end(sequence, FinishReason.ERROR, now, error)
    }
    this.pool.clearCache()
  }

  /** Ends a sequence outside of a step; no effect on a finished one. */
  end(sequence: Sequence, reason: FinishReason, now: number, error?: SequenceError): void {
    if (sequence.state === 'finished') return
    this.remove(sequence, now)
    sequence.owner.deliver(endOf(sequence.id, reason, error))
  }

  /** Ends what is past its deadline or was held too long. */
  sweep(now: number): void {
    for (const sequence of [...this.running, ...this.waiting]) {
      const reason = sequence.overdue(now)
      if (reason !== undefined) this.end(sequence, reason, now)
    }
  }

  /** Ends everything, e.g. because the engine stops. */
  endAll(reason: FinishReason, now: number, error?: SequenceError): void {
    for (const sequence of [...this.running, ...this.waiting]) this.end(sequence, reason, now, error)
  }

  /** The arena's share for this variant may change. */
  private get watermark(): number {
    return Math.ceil(this.pool.capacity * WATERMARK)
  }

  private blocksFor(tokens: number): number {
    return Math.ceil(tokens / this.limits.blockSize)
  }

  /** Adds a running sequence's next tokens to the plan, preempting worse ones or itself when blocks run out. */
  private extend(plan: StepPlan, sequence: Sequence): void {
    const budget = this.limits.maxBatchTokens - plan.tokens
    if (budget === 0 || sequence.state !== 'running') return
    const entry = planEntry(sequence, budget)
    while (!this.reserve(sequence, entry.first + entry.count)) {
      const victim = this.victim(plan)
      this.preempt(victim ?? sequence)
      if (!victim || victim === sequence) return
    }
    commit(plan, entry)
  }

  /** Gives the sequence blocks for its first `tokens` tokens; false when there are none (those taken stay with it). */
  private reserve(sequence: Sequence, tokens: number): boolean {
    const wanted = this.blocksFor(tokens)
    while (sequence.blocks.length < wanted) {
      const block = this.pool.allocate()
      if (!block) return false
      sequence.addBlock(block)
    }
    return true
  }

  /** Whom to preempt: a held sequence, else the last in order that the plan does not hold yet. */
  private victim(plan: StepPlan): Sequence | undefined {
    const held = this.running.findLast((s) => s.heldSince !== undefined)
    if (held) return held
    const planned = new Set(plan.entries.map((entry) => entry.sequence))
    return this.running.findLast((sequence) => !planned.has(sequence))
  }

  /** Back to the queue; its full blocks stay cached, so the recomputation is usually short. */
  private preempt(sequence: Sequence): void {
    this.counters.preemptions++
    this.leaveRunning(sequence)
    sequence.state = 'waiting'
    sequence.pending = 0
    sequence.epoch++
    this.waiting.push(sequence)
    this.pace.observe(this.waiting.size, sequence.arrivedAt)
  }

  /** Milliseconds that a newcomer waits at least, by the measured pace; undefined while that is not known. */
  expectedWaitMs(submit: Submit, now: number): number | undefined {
    const rate = this.pace.perSecond(now)
    return rate === undefined ? undefined : (countAhead(this.waiting, submit) / rate) * 1000
  }

  /** Preempts running sequences for waiting ones that are more urgent and find no slot or no blocks. */
  private makeWay(): void {
    const head = this.waiting.peek()
    if (!head || !this.arena.mayAdmit(this.pool)) return
    for (let worst = this.running.at(-1); worst; worst = this.running.at(-1)) {
      const { priority } = worst.submit
      if (head.submit.priority >= priority || this.hasRoom(this.waiting.above(priority))) return
      this.preempt(worst)
    }
  }

  private hasRoom(sequences: readonly Sequence[]): boolean {
    if (sequences.length > this.freeSlots.length) return false
    const blocks = sequences.reduce((sum, { length }) => sum + this.blocksFor(length), 0)
    return this.pool.available() >= blocks + this.watermark
  }

  private admitAll(plan: StepPlan, now: number): void {
    let blocked = false
    while (plan.tokens < this.limits.maxBatchTokens) {
      const sequence = this.waiting.peek()
      if (!sequence) break
      blocked = !this.admit(plan, sequence, now)
      if (blocked) break
    }
    this.arena.setStarving(this.pool, blocked && this.running.length === 0)
    if (blocked || !this.arena.mayAdmit(this.pool)) this.preemptHeld(now)
  }

  /** Moves a waiting sequence, with blocks for all its tokens, into the plan; false when slots or blocks are short. */
  private admit(plan: StepPlan, sequence: Sequence, now: number): boolean {
    if (this.freeSlots.length === 0 || !this.arena.mayAdmit(this.pool)) return false
    this.attachCached(sequence)
    const reserve = this.running.length > 0 ? this.watermark : 0
    const enough = this.pool.available() >= this.blocksFor(sequence.length) - sequence.blocks.length + reserve
    if (!enough || !this.reserve(sequence, sequence.length)) {
      this.detachBlocks(sequence)
      return false
    }
    this.waiting.remove(sequence)
    this.enterRunning(sequence, now)
    plan.admitted.push(sequence)
    commit(plan, planEntry(sequence, this.limits.maxBatchTokens - plan.tokens))
    return true
  }

  /** Starts the sequence on the cached blocks of its prefix; the last token is always computed. */
  private attachCached(sequence: Sequence): void {
    if (!this.limits.prefixCaching || sequence.submit.promptLogprobs) return
    const { blockSize } = this.limits
    const full = Math.floor((sequence.length - 1) / blockSize)
    for (let i = 0; i < full; i++) {
      const block = this.pool.acquireCached(this.hash(sequence, i))
      if (!block) break
      sequence.addBlock(block)
    }
    sequence.published = sequence.blocks.length
    sequence.computed = sequence.blocks.length * blockSize
  }

  /** Offers the full blocks among the first `computed` tokens to the prefix cache. */
  private publish(sequence: Sequence, computed: number): void {
    if (!this.limits.prefixCaching) return
    const full = Math.floor(computed / this.limits.blockSize)
    for (; sequence.published < full; sequence.published++) {
      const block = sequence.blocks[sequence.published]
      if (block) this.pool.publish(block, this.hash(sequence, sequence.published))
    }
  }

  private hash(sequence: Sequence, index: number): string {
    const { hashes } = sequence
    const { blockSize } = this.limits
    for (let i = hashes.length; i <= index; i++) {
      const parent = hashes[i - 1] ?? sequence.rootHash(this.limits.ropeLimit ?? Infinity)
      hashes.push(chainHash(parent, sequence.tokens.subarray(i * blockSize, (i + 1) * blockSize)))
    }
    return hashes[index] ?? ''
  }

  private enterRunning(sequence: Sequence, now: number): void {
    sequence.state = 'running'
    sequence.slot = this.freeSlots.pop() ?? -1
    const after = this.running.findIndex((other) => compareSequences(other, sequence) > 0)
    this.running.splice(after < 0 ? this.running.length : after, 0, sequence)
    if (sequence.firstScheduledAt !== undefined) return
    sequence.firstScheduledAt = now
    sequence.cachedTokens = sequence.computed
    if (this.limits.prefixCaching && !sequence.submit.promptLogprobs) {
      this.counters.prefixQueries += sequence.length
      this.counters.prefixHits += sequence.cachedTokens
    }
  }

  private leaveRunning(sequence: Sequence): void {
    this.running.splice(this.running.indexOf(sequence), 1)
    this.freeSlots.push(sequence.slot)
    sequence.slot = -1
    this.detachBlocks(sequence)
  }

  /** Tail first: the ends of prefixes are evicted before their beginnings. */
  private detachBlocks(sequence: Sequence): void {
    for (let i = sequence.blocks.length - 1; i >= 0; i--) {
      const block = sequence.blocks[i]
      if (block) this.pool.release(block)
    }
    sequence.blocks = []
    sequence.computed = 0
    sequence.published = 0
  }

  private preemptHeld(now: number): void {
    for (const sequence of this.running.filter((s) => heldFor(s, now) >= HOLD_GRACE_MS)) this.preempt(sequence)
  }

  private remove(sequence: Sequence, now: number): void {
    if (sequence.state === 'running') {
      this.leaveRunning(sequence)
      this.pace.ended(now)
    } else this.waiting.remove(sequence)
    this.pace.observe(this.waiting.size, now)
    sequence.state = 'finished'
    // Without work it is not planned any more, and must not keep others waiting.
    if (this.size === 0) this.arena.setStarving(this.pool, false)
    this.share.leave(sequence.submit.tenant)
    this.onFinish(sequence, now)
  }
}

function commit(plan: StepPlan, entry: PlanEntry): void {
  const { sequence } = entry
  sequence.computed = entry.first + entry.count
  if (entry.sample) sequence.pending++
  plan.entries.push(entry)
  plan.tokens += entry.count
}

/** True unless all that is left is to read results of issued steps. */
function canStep(sequence: Sequence): boolean {
  if (sequence.computed >= sequence.extent) return false
  return sequence.pending === 0 || sequence.extent < sequence.maxLength
}

function isDecode(sequence: Sequence): boolean {
  return sequence.computed === sequence.extent - 1
}

function heldFor(sequence: Sequence, now: number): number {
  return sequence.heldSince === undefined ? 0 : now - sequence.heldSince
}
