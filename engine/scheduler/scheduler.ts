import { FinishReason, type SequenceError, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import type { KvArena } from '../kv/arena.js'
import type { BlockPool } from '../kv/block-pool.js'
import type { StepResult } from '../native.js'
import type { FairShare } from './fair-share.js'
import { BatchGovernor, isBatch } from './governor.js'
import type { SchedulerLimits } from './limits.js'
import { canStep, commit, isDecode, planEntry, type StepPlan } from './plan.js'
import { absorbRows } from './postprocess.js'
import { PrefixCache } from './prefix.js'
import { countAhead, QueuePace } from './queue-pace.js'
import { compareSequences, endOf, type Sequence } from './sequence.js'
import type { Swapper } from './swapper.js'
import { WaitingQueue } from './waiting-queue.js'

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
/** Share of the slots that batch work keeps however many interactive requests there are. */
const BATCH_SLOTS = 1 / 8
/** Share of the blocks left free when a sequence is admitted beside running ones, so that they can grow. */
const WATERMARK = 0.01

/**
 * Continuous batching for one variant. `plan` decides a step and takes its blocks, `complete` applies its results;
 * several plans may be open at once if their steps run in order. No effects beside `owner.deliver` and the swapper's copies.
 */
export class Scheduler {
  readonly counters = noCounts()
  readonly waiting: WaitingQueue
  /** Ordered by compareSequences: the last is preempted first. */
  readonly running: Sequence[] = []
  private readonly pace = new QueuePace()
  private readonly prefixes: PrefixCache
  /** Of the executor; reuse is safe at once because it runs calls in order. */
  private readonly freeSlots: number[]

  constructor(
    readonly limits: SchedulerLimits,
    private readonly arena: KvArena,
    readonly pool: BlockPool,
    private readonly share: FairShare,
    private readonly onFinish: (sequence: Sequence, now: number) => void = () => {},
    private readonly governor = new BatchGovernor(),
    /** Absent where preempted sequences are always computed again. */
    private readonly swapper?: Swapper,
  ) {
    this.waiting = new WaitingQueue(share)
    this.prefixes = new PrefixCache(limits, pool)
    this.freeSlots = Array.from({ length: limits.maxNumSeqs }, (_, i) => limits.maxNumSeqs - 1 - i)
  }

  /** Tokens of a step that batch work may have. */
  get batchTokens(): number {
    return this.governor.tokens(this.limits)
  }

  /** Sequences not finished. */
  get size(): number {
    return this.running.length + this.waiting.size
  }

  /** Takes a validated sequence into the queue. */
  add(sequence: Sequence, now: number): void {
    sequence.progressAt = now
    this.share.enter(sequence.submit.tenant)
    this.waiting.push(sequence)
    sequence.holder = this
  }

  /**
   * Takes sequences out in the order of their arrival, to be run later: those that have not run yet, or all of them,
   * preempted.
   */
  withdraw(all: boolean): Sequence[] {
    if (all) for (const sequence of this.running.toReversed()) this.requeue(sequence)
    const out = [...this.waiting].filter(({ firstScheduledAt }) => all || firstScheduledAt === undefined)
    for (const sequence of out) {
      this.waiting.remove(sequence)
      this.share.leave(sequence.submit.tenant)
    }
    if (this.waiting.size === 0) this.pace.emptied()
    if (this.size === 0) this.arena.setStarving(this.pool, false)
    return out.toSorted((a, b) => a.arrival - b.arrival)
  }

  /**
   * The next step, its blocks taken: decodes, then prefills and admissions, those of interactive requests before those of
   * batch work. Undefined when nothing can run now.
   */
  plan(now: number): StepPlan | undefined {
    const plan: StepPlan = { entries: [], admitted: [], tokens: 0, batchTokens: 0, at: now }
    this.makeWay(now)
    const preempted = this.counters.preemptions
    const [interactive, batch] = this.runnable()
    for (const sequence of interactive) if (isDecode(sequence)) this.extend(plan, sequence, now)
    for (const sequence of batch) if (isDecode(sequence)) this.extend(plan, sequence, now)
    for (const sequence of interactive) if (!isDecode(sequence)) this.extend(plan, sequence, now)
    // Freed blocks belong to those still running; newcomers wait for a step without preemption.
    const admits = (): boolean => this.counters.preemptions === preempted
    let blocked = admits() && this.admitAll(plan, now, false)
    for (const sequence of batch) if (!isDecode(sequence)) this.extend(plan, sequence, now)
    if (admits()) {
      blocked ||= this.admitAll(plan, now, true)
      this.arena.setStarving(this.pool, blocked && this.running.length === 0)
      if (blocked || !this.arena.mayAdmit(this.pool)) this.preemptHeld(now)
    }
    for (const { sequence, count } of plan.entries) this.charge(sequence, count)
    if (plan.entries.length === 0) return undefined
    this.counters.steps++
    this.counters.stepTokens += plan.tokens
    this.counters.stepSequences += plan.entries.length
    for (const { sequence } of plan.entries) sequence.lastStep = this.counters.steps
    return plan
  }

  private charge({ submit }: Sequence, tokens: number): void {
    this.share.charge(submit.tenant, tokens / Math.max(1, submit.weight))
  }

  /** Running sequences that can be stepped: interactive ones, and batch work, that which was stepped longest ago first. */
  private runnable(): [interactive: Sequence[], batch: Sequence[]] {
    const interactive: Sequence[] = []
    const batch: Sequence[] = []
    for (const sequence of this.running) {
      if (sequence.heldSince !== undefined) sequence.progressAt = undefined
      else if (canStep(sequence)) (isBatch(sequence) ? batch : interactive).push(sequence)
    }
    return [interactive, batch.toSorted((a, b) => a.lastStep - b.lastStep)]
  }

  /** Applies the results of the oldest open plan. */
  complete(plan: StepPlan, result: StepResult, now: number): void {
    let row = 0
    this.swapper?.observe(plan, result.deviceMicros)
    let waitMs: number | undefined
    for (const entry of plan.entries) {
      const { sequence } = entry
      const rows = entry.scoreTo - entry.scoreFrom + (entry.sample ? 1 : 0)
      if (sequence.epoch === entry.epoch && sequence.state === 'running') {
        if (!isBatch(sequence)) waitMs = longer(waitMs, sequence.progressAt, now)
        sequence.progressAt = now
        sequence.settled = entry.first + entry.count
        this.prefixes.publish(sequence, sequence.settled)
        const reason = absorbRows(entry, result, row)
        if (reason !== FinishReason.UNSPECIFIED) this.remove(sequence, now)
      }
      row += rows
    }
    this.governor.report(now, { waitMs, batchTokens: plan.batchTokens, plannedAt: plan.at }, this.limits)
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

  /** Tokens that a sequence may have in the step. */
  private budgetFor(plan: StepPlan, sequence: Sequence): number {
    const left = this.limits.maxBatchTokens - plan.tokens
    return isBatch(sequence) ? Math.min(left, this.batchTokens - plan.batchTokens) : left
  }

  /** Adds a running sequence's next tokens to the plan, preempting worse ones or itself when blocks run out. */
  private extend(plan: StepPlan, sequence: Sequence, now: number): void {
    const budget = this.budgetFor(plan, sequence)
    if (budget <= 0 || sequence.state !== 'running') return
    const entry = planEntry(sequence, budget)
    while (!this.reserve(sequence, entry.first + entry.count)) {
      const victim = this.victim(plan)
      this.preempt(victim ?? sequence, now)
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

  /** Puts it back in the queue, which others have to wait in from now on. */
  private preempt(sequence: Sequence, now: number): void {
    this.requeue(sequence)
    this.pace.observe(this.waiting.size, now)
  }

  /** Back to the queue; its full blocks stay cached, so that less has to be computed or copied again. */
  private requeue(sequence: Sequence): void {
    this.counters.preemptions++
    this.swapper?.out(sequence)
    this.leaveRunning(sequence)
    sequence.state = 'waiting'
    sequence.pending = 0
    sequence.progressAt = undefined
    sequence.epoch++
    this.waiting.push(sequence)
  }

  /** Milliseconds that a newcomer waits at least, by the measured pace; undefined while that is not known. */
  expectedWaitMs(submit: Submit, now: number): number | undefined {
    const rate = this.pace.perSecond(now)
    return rate === undefined ? undefined : (countAhead(this.waiting, submit) / rate) * 1000
  }

  /** Preempts running sequences for waiting ones that are more urgent and find no slot or no blocks. */
  private makeWay(now: number): void {
    const head = this.waiting.peek()
    if (!head || !this.arena.mayAdmit(this.pool)) return
    for (let worst = this.running.at(-1); worst; worst = this.running.at(-1)) {
      const { priority } = worst.submit
      if (head.submit.priority >= priority) return
      const spare = this.spareSlots(worst)
      if (this.hasRoom(this.waiting.above(priority).slice(0, this.freeSlots.length + spare), spare > 0)) return
      this.preempt(worst, now)
    }
  }

  /** Slots that sequences as urgent as `worst` may lose to more urgent ones. */
  private spareSlots(worst: Sequence): number {
    const running = this.running.filter(({ submit }) => submit.priority >= worst.submit.priority).length
    return isBatch(worst) ? running - Math.min(running, this.reservedSlots) : running
  }

  private hasRoom(sequences: readonly Sequence[], slots: boolean): boolean {
    if (slots && sequences.length > this.freeSlots.length) return false
    const blocks = sequences.reduce((sum, { length }) => sum + this.blocksFor(length), 0)
    return this.pool.available() >= blocks + this.watermark
  }

  /** Slots that batch work keeps where it wants them. */
  private get reservedSlots(): number {
    return Math.floor(this.limits.maxNumSeqs * BATCH_SLOTS)
  }

  /** Admits what there is room for; true when slots or blocks were short for the next one. */
  private admitAll(plan: StepPlan, now: number, batch: boolean): boolean {
    for (;;) {
      const sequence = this.next()
      if (!sequence || (isBatch(sequence) && !batch) || this.budgetFor(plan, sequence) <= 0) return false
      if (!this.admit(plan, sequence, now)) return true
    }
  }

  /** Who is admitted next: the most urgent, but the last slots are for batch work until it has its share. */
  private next(): Sequence | undefined {
    const first = this.waiting.peek()
    if (!first || isBatch(first) || this.waiting.batchSize === 0) return first
    const missing = this.reservedSlots - this.running.filter(isBatch).length
    return this.freeSlots.length > Math.min(missing, this.waiting.batchSize)
      ? first
      : (this.waiting.peek(true) ?? first)
  }

  /** Moves a waiting sequence, with blocks for all its tokens, into the plan; false when slots or blocks are short. */
  private admit(plan: StepPlan, sequence: Sequence, now: number): boolean {
    if (this.freeSlots.length === 0 || !this.arena.mayAdmit(this.pool)) return false
    this.prefixes.attach(sequence)
    const reserve = this.running.length > 0 ? this.watermark : 0
    const enough = this.pool.available() >= this.blocksFor(sequence.length) - sequence.blocks.length + reserve
    if (!enough || !this.reserve(sequence, sequence.length)) {
      this.detachBlocks(sequence)
      return false
    }
    this.swapper?.back(sequence)
    // Also what another device kept, which is of no use here.
    sequence.dropSwapped()
    this.waiting.remove(sequence)
    this.enterRunning(sequence, now)
    plan.admitted.push(sequence)
    commit(plan, planEntry(sequence, this.budgetFor(plan, sequence)))
    return true
  }

  private enterRunning(sequence: Sequence, now: number): void {
    sequence.state = 'running'
    sequence.slot = this.freeSlots.pop() ?? -1
    const after = this.running.findIndex((other) => compareSequences(other, sequence) > 0)
    this.running.splice(after < 0 ? this.running.length : after, 0, sequence)
    if (sequence.firstScheduledAt !== undefined) return
    sequence.firstScheduledAt = now
    sequence.cachedTokens = sequence.computed
    if (this.prefixes.serves(sequence)) {
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
    sequence.forgetBlocks()
  }

  private preemptHeld(now: number): void {
    for (const sequence of this.running.filter((s) => heldFor(s, now) >= HOLD_GRACE_MS)) this.preempt(sequence, now)
  }

  private remove(sequence: Sequence, now: number): void {
    if (sequence.state === 'running') {
      this.leaveRunning(sequence)
      this.pace.ended(now)
    } else this.waiting.remove(sequence)
    this.pace.observe(this.waiting.size, now)
    sequence.state = 'finished'
    sequence.dropSwapped()
    // Without work it is not planned any more, and must not keep others waiting.
    if (this.size === 0) this.arena.setStarving(this.pool, false)
    this.share.leave(sequence.submit.tenant)
    this.onFinish(sequence, now)
  }
}

/** The longest wait, `since` included where it is known. */
function longer(waitMs: number | undefined, since: number | undefined, now: number): number | undefined {
  return since === undefined ? waitMs : Math.max(waitMs ?? 0, now - since)
}

function heldFor(sequence: Sequence, now: number): number {
  return sequence.heldSince === undefined ? 0 : now - sequence.heldSince
}
