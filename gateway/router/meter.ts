import type { RungFacts } from './facts.js'

/** Weight of a new sample in a running mean. */
const WEIGHT = 0.1
/** Bytes a load brings per millisecond where none was seen: a slow disk's gigabyte a second. */
const USUAL_LOAD_RATE = 1e6

interface Figures {
  /** Milliseconds per token of one sequence. */
  tokenMs: number
  /** Milliseconds per prompt token. */
  promptTokenMs: number
  /** Milliseconds from the submit to the end. */
  serviceMs: number
}

interface Seen {
  state: RungFacts['state']
  since: number
}

/** What every rung has been measured to take: running means, from what its requests saw. Times are milliseconds. */
export class RungMeter {
  readonly #figures = new Map<string, Figures>()
  readonly #seen = new Map<string, Seen>()
  /** Bytes per millisecond, all loads. */
  #loadRate = USUAL_LOAD_RATE

  /** `count` tokens of one sequence came `ms` after those before. */
  tokens(variant: string, count: number, ms: number): void {
    const figures = this.#of(variant)
    figures.tokenMs = mean(figures.tokenMs, ms / count)
  }

  /** `count` tokens of a prompt took `ms` from the first schedule to the first token. */
  prefill(variant: string, count: number, ms: number): void {
    const figures = this.#of(variant)
    if (count > 0) figures.promptTokenMs = mean(figures.promptTokenMs, ms / count)
  }

  /** A request was answered `ms` after its submit. */
  served(variant: string, ms: number): void {
    const figures = this.#of(variant)
    figures.serviceMs = mean(figures.serviceMs, ms)
  }

  /** Follows a rung's state at `now`, to learn what loads take. */
  follow({ name, state, neededBytes }: RungFacts, now: number): void {
    const before = this.#seen.get(name)
    if (before?.state === state) return
    this.#seen.set(name, { state, since: now })
    if (before?.state !== 'loading' || state !== 'ready' || neededBytes === 0) return
    this.#loadRate = mean(this.#loadRate, neededBytes / Math.max(1, now - before.since))
  }

  /** The rung with the figures filled in; `queued` and `running` are its requests in the engine. */
  measured(rung: RungFacts): Pick<RungFacts, 'tokensPerSecond' | 'promptTokensPerSecond' | 'loadMs' | 'waitMs'> {
    const { name, state, neededBytes, queued, running } = rung
    const { tokenMs = 0, promptTokenMs = 0, serviceMs = 0 } = this.#figures.get(name) ?? {}
    return {
      tokensPerSecond: tokenMs > 0 ? 1000 / tokenMs : 0,
      promptTokensPerSecond: promptTokenMs > 0 ? 1000 / promptTokenMs : 0,
      loadMs: state === 'ready' ? 0 : neededBytes / this.#loadRate,
      // Each of those that run frees a place after its service time.
      waitMs: (queued * serviceMs) / Math.max(1, running),
    }
  }

  #of(variant: string): Figures {
    const found = this.#figures.get(variant)
    if (found) return found
    const made = { tokenMs: 0, promptTokenMs: 0, serviceMs: 0 }
    this.#figures.set(variant, made)
    return made
  }
}

function mean(before: number, sample: number): number {
  return before === 0 ? sample : before + WEIGHT * (sample - before)
}
