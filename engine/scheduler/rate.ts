const WINDOW_MS = 10_000
const UNKNOWN_RETRY_MS = 1000

/** Events per second, averaged with exponential decay over about ten seconds. */
export class RateMeter {
  private value = 0
  private updatedAt: number

  constructor(private readonly startedAt: number) {
    this.updatedAt = startedAt
  }

  record(now: number): void {
    this.decay(now)
    this.value++
  }

  /** 0 when nothing was measured yet. */
  perSecond(now: number): number {
    this.decay(now)
    const weight = 1 - Math.exp(-(now - this.startedAt) / WINDOW_MS)
    return weight > 0 ? (this.value / (WINDOW_MS * weight)) * 1000 : 0
  }

  private decay(now: number): void {
    this.value *= Math.exp(-(now - this.updatedAt) / WINDOW_MS)
    this.updatedAt = now
  }
}

/** Milliseconds until a quarter of a full queue has drained at the measured completion rate; 0.1 s to 60 s. */
export function retryAfterMs(waiting: number, completionsPerSecond: number): number {
  if (completionsPerSecond <= 0) return UNKNOWN_RETRY_MS
  const estimate = (Math.max(1, waiting / 4) / completionsPerSecond) * 1000
  return Math.round(Math.min(60_000, Math.max(100, estimate)))
}
