import { FinishReason, type SequenceDelta, type TokenLogprob } from '../../proto/gen/edgeshift/v1/engine.js'
import type { StepResult } from '../native.js'
import type { PlanEntry } from './plan.js'
import { endOf, type Sequence } from './sequence.js'

/**
 * Applies an entry's result rows (from `row` on) to its sequence, delivers what is new and returns the reason when
 * the sequence ended with it.
 */
export function absorbRows(entry: PlanEntry, result: StepResult, row: number): FinishReason {
  const { sequence } = entry
  const scores = entry.scoreTo - entry.scoreFrom
  if (sequence.submit.promptLogprobs && sequence.scored.length === 0) sequence.scored.push(unscored(sequence))
  for (let i = 0; i < scores; i++) sequence.scored.push(readLogprob(result, row + i))
  if (entry.sample) return absorbToken(sequence, result, row + scores)
  if (!sequence.scoreOnly || entry.first + entry.count < sequence.length) return FinishReason.UNSPECIFIED
  sequence.owner.deliver(delta(sequence, FinishReason.LENGTH))
  return FinishReason.LENGTH
}

function absorbToken(sequence: Sequence, result: StepResult, row: number): FinishReason {
  const token = result.tokens[row] ?? -1
  sequence.pending--
  sequence.append(token)
  const reason = finishReason(sequence, token)
  const event = delta(sequence, reason)
  event.tokens.push(token)
  if (sequence.submit.sampling?.topLogprobs !== undefined) event.logprobs.push(readLogprob(result, row))
  sequence.owner.deliver(event)
  return reason
}

function finishReason(sequence: Sequence, token: number): FinishReason {
  if (sequence.stopTokens.has(token) && sequence.outputLength > (sequence.submit.sampling?.minTokens ?? 0)) {
    return FinishReason.STOP
  }
  return sequence.length >= sequence.maxLength ? FinishReason.LENGTH : FinishReason.UNSPECIFIED
}

/** The first delta of a sequence also carries its start and, when asked for, the prompt's log probabilities. */
function delta(sequence: Sequence, finish: FinishReason): SequenceDelta {
  const event = endOf(sequence.id, finish)
  if (sequence.started) return event
  sequence.started = true
  const queued = (sequence.firstScheduledAt ?? sequence.arrivedAt) - sequence.arrivedAt
  event.start = { cachedTokens: sequence.cachedTokens, queueUs: Math.round(queued * 1000) }
  event.promptLogprobs = sequence.scored
  return event
}

function unscored(sequence: Sequence): TokenLogprob {
  return { token: sequence.tokens[0] ?? 0, logprob: Number.NaN, rank: 0, topTokens: [], topLogprobs: [] }
}

function readLogprob(result: StepResult, row: number): TokenLogprob {
  const width = result.tokens.length === 0 ? 0 : result.topTokens.length / result.tokens.length
  const entry: TokenLogprob = {
    token: result.tokens[row] ?? 0,
    logprob: result.logprobs[row] ?? Number.NaN,
    rank: result.ranks[row] ?? 0,
    topTokens: [],
    topLogprobs: [],
  }
  for (let i = row * width; i < (row + 1) * width; i++) {
    const token = result.topTokens[i] ?? -1
    if (token < 0) break
    entry.topTokens.push(token)
    entry.topLogprobs.push(result.topLogprobs[i] ?? Number.NaN)
  }
  return entry
}
