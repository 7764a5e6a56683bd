/** The requests of one session before the gate: who is in, who waits, and who is tried; trial.ts has the rule. */
import type { Standing } from './trial.js'

/** So many suspects with the same record, or fewer, are tried one at a time to the last. */
const FEW = 32
/** A trial does not wait longer for requests that get no token, milliseconds. */
const ROUND_MS = 10_000

interface Waiting {
  standing: Standing
  resolve: () => void
}

/** The line of one session. Suspects are the gate's: it adds them, whoever is given up on is taken out here. */
export class TrialLine {
  readonly #suspects: Set<Standing>
  /** Let in and neither through nor ended: those that a crash may be blamed on. */
  readonly #open = new Set<Standing>()
  /** In the order of arrival. */
  #queue: Waiting[] = []
  /** Suspects that are tried, or what is let in before them, and not through yet. */
  readonly #round = new Set<Standing>()
  /** Suspects that came through. */
  #cleared = 0
  #timer: NodeJS.Timeout | undefined
  #scheduled = false

  /** `suspects`: those of all lines. */
  constructor(suspects: Set<Standing>) {
    this.#suspects = suspects
  }

  /** Let in and neither through nor ended. */
  get open(): readonly Standing[] {
    return [...this.#open]
  }

  /** Requests that wait here. */
  get waiting(): number {
    return this.#queue.length
  }

  /** Undefined: the request may run now; otherwise when the promise resolves. It never rejects. */
  enter(standing: Standing): Promise<void> | undefined {
    // Suspects that are on their way may come here in this turn.
    if (this.#suspects.size === 0 && this.#queue.length === 0) {
      this.#admit(standing)
      return undefined
    }
    this.#schedule()
    return new Promise((resolve) => this.#queue.push({ standing, resolve }))
  }

  /** The request has come through, has ended, or is gone from here. */
  leave(standing: Standing): void {
    this.#open.delete(standing)
    this.#round.delete(standing)
    if (this.#round.size === 0 && this.#queue.length > 0) this.#schedule()
  }

  /** A suspect came through. */
  countCleared(): void {
    this.#cleared++
  }

  /** One of those that run turned out to be a suspect: nobody else is let in until it has come through. */
  hold(standing: Standing): void {
    if (!this.#open.has(standing)) return
    this.#round.add(standing)
    this.#limitRound()
  }

  /** Whoever ends while it waits is told. */
  dismiss(standing: Standing): void {
    const place = this.#queue.findIndex((waiting) => waiting.standing === standing)
    if (place >= 0) this.#queue.splice(place, 1)[0]?.resolve()
  }

  /** The session has ended: those that wait have to look for the next one first. */
  close(): void {
    clearTimeout(this.#timer)
    for (const { resolve } of this.#queue.splice(0)) resolve()
  }

  #admit(standing: Standing): void {
    if (!standing.clear) this.#open.add(standing)
  }

  /** Those that a crash sends here come in the same turn of the event loop: the order is found when all are there. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      if (this.#round.size === 0) this.#startRound()
    })
  }

  #startRound(): void {
    const tried = this.#queue.some(({ standing }) => this.#suspects.has(standing))
    const next = tried ? chooseRound(this.#queue, this.#suspects, this.#cleared) : this.#queue
    const chosen = new Set(next)
    this.#queue = this.#queue.filter((waiting) => !chosen.has(waiting))
    for (const { standing } of next) this.#admit(standing)
    if (tried) {
      for (const { standing } of next) this.#round.add(standing)
      this.#limitRound()
    }
    for (const { resolve } of next) resolve()
  }

  #limitRound(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#giveUp(), ROUND_MS).unref()
  }

  /** Whoever got no token in all that time does not keep the others waiting. */
  #giveUp(): void {
    for (const standing of this.#round) this.#suspects.delete(standing)
    this.#round.clear()
    this.#schedule()
  }
}

/** Who is let in next where suspects wait. */
function chooseRound(queue: readonly Waiting[], suspects: ReadonlySet<Standing>, cleared: number): Waiting[] {
  const others = queue.filter(({ standing }) => standing.crashes > 0 && !suspects.has(standing))
  if (others.length > 0) return others
  const next = queue
    .filter(({ standing }) => suspects.has(standing))
    .toSorted((a, b) => compareBlame(a.standing, b.standing))
  return next.slice(0, trialSize(next, cleared))
}

/** How many suspects are tried at a time, from the first of the list on. */
function trialSize([first, ...rest]: readonly Waiting[], cleared: number): number {
  if (first === undefined || first.standing.blame > 0) return 1
  const alike = 1 + rest.filter(({ standing }) => standing.crashes === first.standing.crashes).length
  return alike + cleared <= FEW ? 1 : Math.max(1, Math.floor(cleared / 4))
}

/** Least to blame first; of these, who was in flight most often, which is the likelier to be to blame. */
function compareBlame(a: Standing, b: Standing): number {
  return a.blame - b.blame || b.crashes - a.crashes || Number(b.stuck) - Number(a.stuck)
}
