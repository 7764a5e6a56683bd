/**
 * Which requests run together after the engine died under them, and which one is to blame.
 *
 * A request that kills the engine does so at some token, so it never gets past that one however often it is replayed,
 * while the others do. The rule:
 * 1. A request has come through when each of its choices got CLEAR_TOKENS tokens (or ended) since the crash, over all of
 *    its replays together. That is more than the tokens a dying engine can have computed but not told.
 * 2. Replays after a crash run together. A request that was in flight at two crashes in a row without coming through
 *    in between is a suspect.
 * 3. While there are suspects the gate is shut: first those run that are none, together; then the suspects, one at a
 *    time, in the order of least blame, least progress, arrival; the more have come through, the more at a time (a
 *    quarter of their number). New requests wait until all have had their turn.
 * 4. A crash counts against a request if that was the only one in flight that had not come through, and had got no
 *    token since it was submitted. The third such crash in a row refuses it; before, it waits for all others.
 * So a poison request costs three to seven restarts. A request is refused wrongly only if the engine is killed from outside
 * within the first step of three trials of its own, all others having come through in between.
 */

/** Tokens of each choice after which a request has passed the place where the engine died. */
export const CLEAR_TOKENS = 4
/** Crashes in a row that count against a request, after which it is refused. */
const COUNTED_CRASHES = 3
/** A trial does not wait longer for requests that get no token, milliseconds. */
const ROUND_MS = 10_000

/** One request before the gate. Made by its owner, changed by the gate alone. */
export class Standing {
  /** Crashes in a row that it was in flight at without coming through in between. */
  crashes = 0
  /** Of these, those that count against it. */
  blame = 0
  /** It has come through since the last crash. */
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
  /** Let in and neither through nor ended: those that a crash may be blamed on. */
  readonly #open = new Set<Standing>()
  /** Lost at two crashes or more, neither through nor given up on. */
  readonly #suspects = new Set<Standing>()
  /** In the order of arrival. */
  #queue: Waiting[] = []
  /** Let in by the shut gate and not through yet. */
  readonly #round = new Set<Standing>()
  /** Suspects that came through since the last crash. */
  #cleared = 0
  #crash: { session: object; blamed: Standing | undefined } | undefined
  #timer: NodeJS.Timeout | undefined
  #scheduled = false

  /** Requests that wait at the gate. */
  get waiting(): number {
    return this.#queue.length
  }

  /** A request is about to be submitted. Undefined: now; otherwise when the promise resolves. It never rejects. */
  enter(standing: Standing): Promise<void> | undefined {
    standing.moved = false
    this.#round.delete(standing)
    if (this.#suspects.size === 0 && this.#queue.length === 0) {
      if (!standing.clear) this.#open.add(standing)
      return undefined
    }
    this.#schedule()
    return new Promise((resolve) => this.#queue.push({ standing, resolve }))
  }

  /** `session` ended with the request in flight; says by `refused` whether that was once too often. Once a session. */
  lost(standing: Standing, session: object): void {
    if (standing.lostWith === session) return
    standing.lostWith = session
    standing.stuck = !standing.moved
    const blamed = this.#crashOf(session).blamed === standing
    standing.blame = (standing.clear ? 0 : standing.blame) + (blamed ? 1 : 0)
    standing.crashes = (standing.clear ? 0 : standing.crashes) + 1
    standing.clear = false
    standing.refused = standing.blame >= COUNTED_CRASHES
    if (standing.refused) this.#suspects.delete(standing)
    else if (standing.crashes > 1) this.#suspects.add(standing)
  }

  /** The request got tokens; `clear`: by now it has come through. */
  progressed(standing: Standing, clear: boolean): void {
    standing.moved = true
    if (!clear) return
    standing.clear = true
    standing.crashes = 0
    standing.blame = 0
    if (this.#suspects.delete(standing)) this.#cleared++
    this.#leave(standing)
  }

  /** It was let in but not submitted, because the engine is gone. */
  retreat(standing: Standing): void {
    this.#leave(standing)
  }

  /** The engine does not work on the request for now: its trial says nothing. */
  excuse(standing: Standing): void {
    this.#suspects.delete(standing)
    this.#leave(standing)
  }

  /** The request ended. Whoever waits for its turn is told. */
  end(standing: Standing): void {
    this.excuse(standing)
    const place = this.#queue.findIndex((waiting) => waiting.standing === standing)
    if (place >= 0) this.#queue.splice(place, 1)[0]?.resolve()
  }

  /** What is asked once a crash, before it is told of the others. */
  #crashOf(session: object): { blamed: Standing | undefined } {
    if (this.#crash?.session === session) return this.#crash
    const [only] = this.#open
    this.#crash = { session, blamed: this.#open.size === 1 && only && !only.moved ? only : undefined }
    this.#open.clear()
    this.#round.clear()
    this.#cleared = 0
    // Those that wait have to look for the next engine first.
    for (const { resolve } of this.#queue.splice(0)) resolve()
    return this.#crash
  }

  #leave(standing: Standing): void {
    this.#open.delete(standing)
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
    for (const { standing } of next) if (!standing.clear) this.#open.add(standing)
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
  const next = queue
    .filter(({ standing }) => suspects.has(standing))
    .toSorted((a, b) => compareBlame(a.standing, b.standing))
  return next.slice(0, next[0]?.standing.blame ? 1 : Math.max(1, Math.floor(cleared / 4)))
}

/** Least to blame first; of these, who was in flight most often, which is the likelier to be to blame. */
function compareBlame(a: Standing, b: Standing): number {
  return a.blame - b.blame || b.crashes - a.crashes || Number(b.stuck) - Number(a.stuck)
}
