import { MAX_TIMER_MS } from '../../engine/config/index.js'

/** Those that wait for a change of one engine or another. */
export class Waiters {
  readonly #checks = new Set<() => void>()

  /** How many wait. */
  get size(): number {
    return this.#checks.size
  }

  /** To be called after a change: everyone looks again. */
  notify(): void {
    for (const check of this.#checks) check()
  }

  /**
   * Resolves with the first defined value of `probe`, which is tried now and after every change; with undefined after
   * `timeoutMs` or when `signal` aborts.
   */
  waitFor<T>(probe: () => T | undefined, timeoutMs: number, signal?: AbortSignal): Promise<T | undefined> {
    const now = probe()
    if (now !== undefined || timeoutMs <= 0 || signal?.aborted) return Promise.resolve(now)
    return new Promise((resolve) => {
      const settle = (value: T | undefined): void => {
        clearTimeout(timer)
        this.#checks.delete(check)
        signal?.removeEventListener('abort', giveUp)
        resolve(value)
      }
      const check = (): void => {
        const value = probe()
        if (value !== undefined) settle(value)
      }
      const giveUp = (): void => settle(undefined)
      const timer = setTimeout(giveUp, Math.min(timeoutMs, MAX_TIMER_MS))
      this.#checks.add(check)
      signal?.addEventListener('abort', giveUp)
    })
  }
}
