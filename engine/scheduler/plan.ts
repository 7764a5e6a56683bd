import { isBatch } from './governor.js'
import type { Sequence } from './sequence.js'

/** A sequence's part of one step: tokens at positions first .. first + count - 1. */
export interface PlanEntry {
  sequence: Sequence
  /** Its epoch when planned. */
  epoch: number
  first: number
  count: number
  /** Positions whose successor in the prompt is scored: scoreFrom .. scoreTo - 1. */
  scoreFrom: number
  scoreTo: number
  /** The last position's logits are sampled. */
  sample: boolean
}

/** What one step runs. */
export interface StepPlan {
  entries: PlanEntry[]
  /** Sequences that got their slot in this plan: their sampling state must be set before the step. */
  admitted: Sequence[]
  /** Tokens of all entries, and of those of batch work. */
  tokens: number
  batchTokens: number
  /** When it was made. */
  at: number
}

/** The part of a sequence that comes next, at most `budget` tokens. */
export function planEntry(sequence: Sequence, budget: number): PlanEntry {
  const first = sequence.computed
  const count = Math.min(sequence.extent - first, budget)
  const end = first + count
  const scores = sequence.submit.promptLogprobs
  const scoreFrom = scores ? Math.max(first, sequence.scored.length - 1) : first
  const scoreTo = scores ? Math.max(scoreFrom, Math.min(end, sequence.submittedLength - 1)) : first
  const sample = end === sequence.extent && !sequence.scoreOnly
  return { sequence, epoch: sequence.epoch, first, count, scoreFrom, scoreTo, sample }
}

/** Puts an entry into the plan; its tokens count as computed from here on. */
export function commit(plan: StepPlan, entry: PlanEntry): void {
  const { sequence } = entry
  sequence.computed = entry.first + entry.count
  if (entry.sample) sequence.pending++
  plan.entries.push(entry)
  plan.tokens += entry.count
  if (isBatch(sequence)) plan.batchTokens += entry.count
}

/** True unless all that is left is to read results of issued steps. */
export function canStep(sequence: Sequence): boolean {
  if (sequence.computed >= sequence.extent) return false
  return sequence.pending === 0 || sequence.extent < sequence.maxLength
}

/** True when only its last token has to be computed. */
export function isDecode(sequence: Sequence): boolean {
  return sequence.computed === sequence.extent - 1
}
