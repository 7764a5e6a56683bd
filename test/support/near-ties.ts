/**
 * Where texts may part on a GPU: kernels of other widths sum in another order, so a token that is as good as equally
 * likely as the next one may give way to it in a batch of another size, or when it is read again instead of written.
 */
import type { SamplingParams, Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import type { InProcessEngine } from './engine-in-process.js'

/** Largest difference of two logits, and of their log probabilities, that counts as a tie. */
export const NEAR_TIE = 0.05

/** A sequence whose next token is asked for. */
export interface Place {
  variant: string
  prompt: readonly number[]
  /** What of the answer is there. */
  before: readonly number[]
  sampling: SamplingParams
  grammar?: Submit['grammar']
}

/**
 * The token of a place once the logit of the usual one is lowered by a tie's width; the usual one itself where there is no
 * near tie. The draws of a place do not change, so this holds for sampled tokens as for greedy ones.
 */
export async function tokenAtTie(
  box: InProcessEngine,
  { variant, prompt, before, sampling, grammar }: Place,
  usual: number,
): Promise<number> {
  const { tokens } = await box.ask(variant, [...prompt, ...before], {
    replayedTokens: before.length,
    maxTokens: 1,
    sampling: { ...sampling, logitBias: new Map([[usual, -NEAR_TIE]]) },
    grammar,
  })
  return tokens[0] ?? usual
}
