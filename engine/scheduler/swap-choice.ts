/** What a preempted sequence costs either way. */
export interface SwapCosts {
  /** Tokens whose keys and values would have to be computed again. */
  tokens: number
  /** Bytes of their blocks, copied out and later in. */
  bytes: number
  /** Measured; undefined while no longer step has been seen. */
  prefillTokensPerSecond: number | undefined
  copyBytesPerSecond: number
}

/** Of a copy of any size: its start and the turn of the event loop that it takes. */
const COPY_SECONDS = 100e-6

/**
 * Whether keeping a preempted sequence's blocks in host memory costs the device less time than computing them again. What
 * the prefix cache may still hold when it comes back is not counted: it was preempted because blocks are short. Pure.
 */
export function prefersSwap({ tokens, bytes, prefillTokensPerSecond, copyBytesPerSecond }: SwapCosts): boolean {
  if (tokens <= 0) return false
  if (prefillTokensPerSecond === undefined) return true
  return 2 * (COPY_SECONDS + bytes / copyBytesPerSecond) < tokens / prefillTokensPerSecond
}
