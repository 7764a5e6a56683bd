import type { Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Sequence } from './sequence.js'

/** Fewer ends, or a shorter time, tell too little. */
const MIN_ENDS = 8
const MIN_MS = 1000
/** What is older counts half. */
const WINDOW_MS = 20_000

/**
 * How fast a queue drains: ends per second while there is one. An average that counts idle time as well would promise
 * too long a wait to those who come with a burst.
 */
export class QueuePace {
  private since: number | undefined
  private ends = 0

  /** The queue has `waiting` sequences now. */
  observe(waiting: number, now: number): void {
    if (waiting === 0) this.emptied()
    else this.since ??= now
  }

  /** Nobody waits any more: what was measured ends here. */
  emptied(): void {
    this.since = undefined
    this.ends = 0
  }

  /** A sequence ended that had run. */
  ended(now: number): void {
    if (this.since === undefined) return
    this.ends++
    if (now - this.since < WINDOW_MS) return
    this.ends /= 2
    this.since += (now - this.since) / 2
  }

  /** Undefined while too little is known. */
  perSecond(now: number): number | undefined {
    if (this.since === undefined || this.ends < MIN_ENDS || now - this.since < MIN_MS) return undefined
    return (this.ends / (now - this.since)) * 1000
  }
}

/**
 * How many of `waiting` go before a newcomer at least: those that are more urgent, and of its own priority as many as
 * fair turns among the tenants give.
 */
export function countAhead(
  waiting: Iterable<Sequence>,
  { priority, tenant }: Pick<Submit, 'priority' | 'tenant'>,
): number {
  let urgent = 0
  let equal = 0
  let own = 0
  const tenants = new Set([tenant])
  for (const { submit } of waiting) {
    if (submit.priority < priority) urgent++
    if (submit.priority !== priority) continue
    equal++
    if (submit.tenant === tenant) own++
    tenants.add(submit.tenant)
  }
  return urgent + Math.min(equal, own * tenants.size)
}
