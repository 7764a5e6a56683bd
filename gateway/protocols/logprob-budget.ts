import { GatewayError } from '../errors.js'
import type { TokenLogprob } from '../request.js'

/** A million take seconds to encode, in which nothing else is served; six million are more text than a string can hold. */
const MAX_ENTRIES = 1_000_000

/** Log probabilities, alternatives among them, that one answer may have which is sent whole. */
export class LogprobBudget {
  #left = MAX_ENTRIES

  /** Takes what came. Throws invalid_request when it is more than there may be. */
  spend(logprobs: readonly TokenLogprob[]): void {
    for (const { top } of logprobs) this.#left -= 1 + top.length
    if (this.#left >= 0) return
    throw new GatewayError(
      'invalid_request',
      `the answer has more than ${MAX_ENTRIES} log probabilities; ask for fewer alternatives or tokens, or for a stream`,
    )
  }
}
