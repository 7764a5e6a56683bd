import type { Sampling } from '../../gateway/request.js'

/** What a request that names no sampling field gets. */
export const DEFAULT_SAMPLING: Sampling = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: new Map(),
  minTokens: 0,
  ignoreEos: false,
  stopTokenIds: [],
}
