/**
 * Keeps interactive requests within their latency goal: batch work gets as many tokens of a step as that leaves.
 * Requests of a priority above 0 are batch work, all others interactive.
 */
import type { Sequence } from './sequence.js'

/** True for batch work. */
export function isBatch({ submit }: Sequence): boolean {
  return submit.priority > 0
}

/** What one step told. */
export interface StepReport {
  /** The longest that an interactive sequence of the step went without progress; undefined = the step had none. */
  waitMs: number | undefined
  /** Batch tokens that it may have waited for: the most of this step and the one before. */
  batchTokens: number
  /** What the step took, and the time since the last step's report. */
  stepMs: number
  elapsedMs: number
  /** Interactive requests came a short while ago, so the next one is to be expected. */
  expected: boolean
}

/** Bounds of the batch tokens in a step. A goal of 0 means that there is none. */
export interface BudgetBounds {
  /** For one step. */
  goalMs: number
  least: number
  most: number
}

/** Shares of the goal: above the first it is near, below the second there is room, and between them it aims. */
const NEAR = 0.9
const ROOM = 0.6
const AIM = 0.75
/** One step cuts to no less than that share: a single slow step may have other causes. */
const SMALLEST_CUT = 0.25
/** What is added with room, as a share. */
const GROWTH = 1 / 8
/** Only a budget that is used says what the next larger one would cost. */
const USED = 0.75
/** Without interactive requests it doubles in this time, milliseconds, */
const DOUBLING_MS = 1000
/** or as fast as its use shows that steps stay short, at most by this factor a step; */
const MOST_GROWTH = 2
/** as long as a step takes less than so many goals: the next interactive request may come at its beginning. */
const ALONE = 3
/** A first token takes what is left of a step under way, and a step of its own. */
const STEPS_TO_FIRST_TOKEN = 2
/** For so long after an interactive request the next one is expected, milliseconds. */
const EXPECTED_MS = 10_000

/** The budget after a step, in tokens. Pure; stays within the bounds. */
export function nextBudget(tokens: number, report: StepReport, { goalMs, least, most }: BudgetBounds): number {
  if (goalMs === 0) return most
  const now = Math.min(most, Math.max(least, tokens))
  const { waitMs, batchTokens, stepMs, elapsedMs, expected } = report
  const alone = waitMs === undefined
  const ms = alone ? stepMs : waitMs
  const goal = alone && !expected ? ALONE * goalMs : goalMs
  if (ms > NEAR * goal) {
    if (batchTokens === 0) return now
    const cut = Math.max(SMALLEST_CUT, (AIM * goal) / ms)
    return Math.max(least, Math.min(now, batchTokens) * cut)
  }
  if (ms >= ROOM * goal) return now
  const used = batchTokens >= USED * now
  if (alone) {
    const measured = used ? Math.min(MOST_GROWTH, (ROOM * goal) / ms) : 1
    return Math.min(most, now * Math.max(measured, 2 ** (elapsedMs / DOUBLING_MS)))
  }
  return used ? Math.min(most, now + Math.max(1, now * GROWTH)) : now
}

/** Tokens before anything is measured: few enough for any device, and doubled by every short step. */
const FIRST_TOKENS = 64

/** The peak that is shown fades to a third in this time, milliseconds. */
const FADE_MS = 10_000

/** The budget of one device: all its variants' steps make interactive requests wait. */
export class BatchGovernor {
  /** Longest recent wait of an interactive sequence between two steps of its own, milliseconds. */
  peakMs = 0
  private budget = FIRST_TOKENS
  private batchBefore = 0
  private reportedAt: number | undefined
  private interactiveAt = -Infinity

  /** `goalMs` may be changed; 0 = no goal. */
  constructor(public goalMs = 0) {}

  /** Batch tokens that a step may have. */
  tokens(sizes: { maxNumSeqs: number; maxBatchTokens: number }): number {
    const { least, most } = this.bounds(sizes)
    return this.goalMs === 0 ? most : Math.floor(Math.min(most, Math.max(least, this.budget)))
  }

  /** A step has ended that was planned at `plannedAt`. `waitMs` as in StepReport. */
  report(
    now: number,
    step: { waitMs: number | undefined; batchTokens: number; plannedAt: number },
    sizes: { maxNumSeqs: number; maxBatchTokens: number },
  ): void {
    const elapsedMs = Math.max(0, now - (this.reportedAt ?? now))
    const batchTokens = Math.max(step.batchTokens, this.batchBefore)
    // A step that was planned behind another one began when that had ended.
    const stepMs = now - Math.max(step.plannedAt, this.reportedAt ?? 0)
    const { waitMs } = step
    if (waitMs !== undefined) this.interactiveAt = now
    const expected = now - this.interactiveAt < EXPECTED_MS
    this.budget = nextBudget(this.budget, { waitMs, batchTokens, stepMs, elapsedMs, expected }, this.bounds(sizes))
    this.peakMs = Math.max(waitMs ?? 0, this.peakMs * Math.exp(-elapsedMs / FADE_MS))
    this.batchBefore = step.batchTokens
    this.reportedAt = now
  }

  /** An eighth of the slots decodes at the least, so that batch work never stands still. */
  private bounds(sizes: { maxNumSeqs: number; maxBatchTokens: number }): BudgetBounds {
    const most = sizes.maxBatchTokens
    return {
      goalMs: this.goalMs / STEPS_TO_FIRST_TOKEN,
      least: Math.min(most, Math.max(4, Math.ceil(sizes.maxNumSeqs / 8))),
      most,
    }
  }
}
