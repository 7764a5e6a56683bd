/** How an engine that died is brought back. */
export interface RestartPolicy {
  /** Wait before the first restart; doubles with every further rapid crash. */
  baseDelayMs: number
  maxDelayMs: number
  /** An engine that served at least this long starts the count anew, */
  stableAfterMs: number
  /** and so does one that told of at least this many steps: it works, whatever killed it. */
  stableAfterSteps: number
  /** Rapid crashes in a row from which on it counts as a crash loop. */
  crashLoopAfter: number
}

/** What a process did until it ended. */
export interface EngineLife {
  /** Since it took requests; 0 when it never did. */
  servedMs: number
  steps: number
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
  stableAfterSteps: 16,
  crashLoopAfter: 6,
}

/** Decides the next restart from the number of rapid crashes before and what this process did. Pure. */
export function decideRestart(policy: RestartPolicy, crashesBefore: number, life: EngineLife): RestartDecision {
  const stable = life.servedMs >= policy.stableAfterMs || life.steps >= policy.stableAfterSteps
  const crashes = stable ? 1 : crashesBefore + 1
  const delayMs = Math.min(policy.maxDelayMs, policy.baseDelayMs * 2 ** (crashes - 1))
  return { crashes, delayMs, crashLoop: crashes >= policy.crashLoopAfter }
}
