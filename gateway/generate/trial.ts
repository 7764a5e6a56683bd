/**
 * Which requests run together after the engine died under them, and which one is to blame.
 *
 * A request that kills the engine does so at some token, so it never gets past that one however often it is replayed,
 * while the others do. The rule:
 * 1. A request has come through when each of its choices got CLEAR_TOKENS new tokens (or ended) after it was submitted.
 *    That is more than the tokens a dying engine can have computed but not told.
 * 2. Replays after a crash run together. A request that was in flight at two crashes in a row without coming through
 *    in between is a suspect.
 * 3. While there are suspects the gate is shut: first those run that are none, together; then the suspects, one at a
 *    time, in the order of most blame, least progress, arrival; the more have come through, the more at a time (a
 *    quarter of their number). New requests wait until all have had their turn.
 * 4. A crash with one suspect alone on trial counts against it; the second such crash in a row refuses it.
 * So a poison request costs four or five restarts, and a request is never refused for crashes at which others could be
 * to blame.
 */

/** New tokens of each choice after which a replay has passed the place where the engine died. */
export const CLEAR_TOKENS = 4
/** Crashes alone on trial, without coming through in between, after which a request is refused. */
export const CRASHES_ALONE = 2
/** A trial does not wait longer for requests that get no token, milliseconds. */
const ROUND_MS = 10_000

/** One request before the gate. Made by its owner, changed by the gate alone. */
export class Standing {
  /** Crashes in a row that it was in flight at without coming through in between. */
  crashes = 0
  /** Of these, those with it alone on trial. */
  alone = 0
  /** It has come through since it was last submitted. */
  clear = false
  /** It has got any token since it was last submitted. */
  moved = false
  /** The engine last died before it got any. */
  stuck = false
  /** The engine may not be given it again. */
  refused = false
  /** The session at whose end it was last lost. */
  lostWith: object | undefined
}

interface Waiting {
  standing: Standing
  resolve: () => void
}

/** Lets requests into the engine; see above. */
export class TrialGate {
  /** Lost at two crashes or more, neither through nor given up on. */
  readonly #suspects = new Set<Standing>()
  /** In the order of arrival. */
  #queue: Waiting[] = []
  /** Let in by the shut gate and not through yet. */
  readonly #round = new Set<Standing>()
  /** Suspects that came through since the last crash. */
  #cleared = 0
  #crash: { session: object; alone: Standing | undefined } | undefined
  #timer: NodeJS.Timeout | undefined
  #scheduled = false

  /** Requests that wait at the gate. */
  get waiting(): number {
    return this.#queue.length
  }

  /** A request is about to be submitted. Undefined: now; otherwise when the promise resolves. It never rejects. */
  enter(standing: Standing): Promise<void> | undefined {
    standing.clear = false
    standing.moved = false
    this.#round.delete(standing)
    if (this.#suspects.size === 0 && this.#queue.length === 0) return undefined
    this.#schedule()
    return new Promise((resolve) => this.#queue.push({ standing, resolve }))
  }

  /** `session` ended with the request in flight; says by `refused` whether that was once too often. Once a session. */
  lost(standing: Standing, session: object): void {
    if (standing.lostWith === session) return
    standing.lostWith = session
    standing.stuck = !standing.moved
    const alone = this.#crashOf(session).alone === standing
    standing.alone = (standing.clear ? 0 : standing.alone) + (alone ? 1 : 0)
    standing.crashes = (standing.clear ? 0 : standing.crashes) + 1
    standing.refused = standing.alone >= CRASHES_ALONE
    if (standing.refused) this.#suspects.delete(standing)
    else if (standing.crashes > 1) this.#suspects.add(standing)
  }

  /** The request got tokens; `clear`: by now it has come through. */
  progressed(standing: Standing, clear: boolean): void {
    standing.moved = true
    if (clear) this.#passed(standing)
  }

  /** It was let in but not submitted, because the engine is gone. */
  retreat(standing: Standing): void {
    this.#leave(standing)
  }

  #passed(standing: Standing): void {
    standing.clear = true
    standing.crashes = 0
    standing.alone = 0
    if (this.#suspects.delete(standing)) this.#cleared++
    this.#leave(standing)
  }

  /** The request ended, or the engine does not work on it for now: nothing can be learned from it. */
  excuse(standing: Standing): void {
    this.#suspects.delete(standing)
    this.#leave(standing)
    const place = this.#queue.findIndex((waiting) => waiting.standing === standing)
    // Whoever ended while waiting need not wait for its turn.
    if (place >= 0) this.#queue.splice(place, 1)[0]?.resolve()
  }

  /** Who was on trial is asked once a crash, before it is told of the others. */
  #crashOf(session: object): { alone: Standing | undefined } {
    if (this.#crash?.session === session) return this.#crash
    const [only] = this.#round
    const alone = this.#round.size === 1 && only && this.#suspects.has(only) ? only : undefined
    this.#crash = { session, alone }
    this.#round.clear()
    this.#cleared = 0
    return this.#crash
  }

  #leave(standing: Standing): void {
    this.#round.delete(standing)
    if (this.#round.size === 0 && this.#queue.length > 0) this.#schedule()
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
    clearTimeout(this.#timer)
    const next = chooseRound(this.#queue, this.#suspects, this.#cleared)
    if (next.length === 0) return
    const chosen = new Set(next)
    this.#queue = this.#queue.filter((waiting) => !chosen.has(waiting))
    if (this.#suspects.size > 0) {
      for (const { standing } of next) this.#round.add(standing)
      this.#timer = setTimeout(() => this.#giveUp(), ROUND_MS).unref()
    }
    for (const { resolve } of next) resolve()
  }

  /** Whoever got no token in all that time does not keep the others waiting. */
  #giveUp(): void {
    for (const standing of this.#round) this.#suspects.delete(standing)
    this.#round.clear()
    this.#schedule()
  }
}

/** Who is let in next: everyone once no suspect is left, else as the rule says; nobody when suspects are on their way. */
function chooseRound(queue: readonly Waiting[], suspects: ReadonlySet<Standing>, cleared: number): Waiting[] {
  if (suspects.size === 0) return [...queue]
  const others = queue.filter(({ standing }) => standing.crashes > 0 && !suspects.has(standing))
  if (others.length > 0) return others
  return queue
    .filter(({ standing }) => suspects.has(standing))
    .toSorted((a, b) => compareBlame(a.standing, b.standing))
    .slice(0, Math.max(1, Math.floor(cleared / 4)))
}

/** Most to blame first. */
function compareBlame(a: Standing, b: Standing): number {
  return b.alone - a.alone || b.crashes - a.crashes || Number(b.stuck) - Number(a.stuck)
}
