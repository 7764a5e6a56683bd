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
