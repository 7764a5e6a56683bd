/** How an engine that died is brought back. */
export interface RestartPolicy {
  /** Wait before the first restart; doubles with every further rapid crash. */
  baseDelayMs: number
  maxDelayMs: number
  /** An engine that served at least this long starts the count anew. */
  stableAfterMs: number
  /** Rapid crashes in a row from which on it counts as a crash loop. */
  crashLoopAfter: number
}

/** What to do after an exit. */
export interface RestartDecision {
  /** Rapid crashes in a row, this one included. */
  crashes: number
  delayMs: number
  /** Nobody should wait for this engine: requests are refused at once until it is back. */
  crashLoop: boolean
}

/** Restarts at once on a first crash of a healthy engine, slowly in a crash loop. */
export const DEFAULT_RESTART_POLICY: RestartPolicy = {
  baseDelayMs: 100,
  maxDelayMs: 30_000,
  stableAfterMs: 30_000,
  crashLoopAfter: 5,
}

/** Decides the next restart from the number of rapid crashes before and how long this run served. Pure. */
export function decideRestart(policy: RestartPolicy, crashesBefore: number, servedMs: number): RestartDecision {
  const crashes = servedMs >= policy.stableAfterMs ? 1 : crashesBefore + 1
  const delayMs = Math.min(policy.maxDelayMs, policy.baseDelayMs * 2 ** (crashes - 1))
  return { crashes, delayMs, crashLoop: crashes >= policy.crashLoopAfter }
}
