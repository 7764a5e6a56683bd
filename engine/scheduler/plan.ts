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
  /** Tokens of all entries. */
  tokens: number
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
