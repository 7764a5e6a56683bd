/**
 * Which requests run together after the engine died under them, and which one is to blame.
 *
 * A request that kills the engine does so at some token, so it never gets past that one however often it is replayed,
 * while the others do. The rule:
 * 1. A request has come through when each of its choices got CLEAR_TOKENS tokens (or ended) since the crash, over all of
 *    its replays together. That is more than the tokens a dying engine can have computed but not told.
 * 2. Replays after a crash run together, but for suspects: requests that were in flight at two crashes in a row without
 *    coming through in between, and, where the engine died by itself (rather than being killed), those that had not come
 *    through since they were submitted.
 * 3. While there are suspects the gate is shut: first those run that are none, together; then the suspects, one at a
 *    time, in the order of least blame, most crashes, least progress, arrival. Where they are many, more at a time as more
 *    have come through (a quarter of their number). New requests wait until all have had their turn.
 * 4. A crash counts against a request if that was the only one in flight that had not come through, and had got no
 *    token since it was submitted. It is refused at once when the engine died by itself then and at the crash before; else
 *    the third such crash in a row refuses it, and before that it waits for all others.
 * So a poison request is refused at the second crash, where it is alone at that: always where few others were new beside
 * it. Among many new ones, or where it had run for long, it takes one or two crashes more. A request is refused wrongly
 * only if the engine dies of something else within the first step of its trial, right after another such death, or is
 * killed so three times.
 */

/** Tokens of each choice after which a request has passed the place where the engine died. */
export const CLEAR_TOKENS = 4
/** Crashes in a row that count against a request, after which it is refused. */
const COUNTED_CRASHES = 3
/** Crashes of the engine's own making in a row, the last of which counts against a request, after which it is refused. */
const OWN_CRASHES = 2
/** So many suspects with the same record, or fewer, are tried one at a time to the last. */
const FEW = 32
/** A trial does not wait longer for requests that get no token, milliseconds. */
const ROUND_MS = 10_000

/** One request before the gate. Made by its owner, changed by the gate alone. */
export class Standing {
  /** Crashes in a row that it was in flight at without coming through in between. */
  crashes = 0
  /** The last of these in a row in which the engine died by itself. */
  ownCrashes = 0
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
  /** It has ended. */
  over = false
  /** The session at whose end it was last lost. */
  lostWith: object | undefined
  /** The one that it was last let in to. */
  session: object | undefined
}

/** One death of the engine. */
interface Crash {
  /** The only one that had not come through, where it had got no token. */
  blamed: Standing | undefined
  /** Whether the engine died by itself; undefined until that is known. */
  own: boolean | undefined
  /** Who was lost, and whether it had come through. */
  readonly lost: Map<Standing, boolean>
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
  /** By the session that ended: how one engine ended may be known only after the next one has, too. */
  readonly #crashes = new WeakMap<object, Crash>()
  #timer: NodeJS.Timeout | undefined
  #scheduled = false

  /** Requests that wait at the gate. */
  get waiting(): number {
    return this.#queue.length
  }

  /** A request is about to be submitted to `session`. Undefined: now; otherwise when the promise resolves. It never rejects. */
  enter(standing: Standing, session: object): Promise<void> | undefined {
    standing.moved = false
    standing.session = session
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
    const crash = this.#crashOf(session)
    const { clear } = standing
    crash.lost.set(standing, clear)
    standing.blame = (clear ? 0 : standing.blame) + (crash.blamed === standing ? 1 : 0)
    standing.crashes = (clear ? 0 : standing.crashes) + 1
    if (clear) standing.ownCrashes = 0
    standing.clear = false
    standing.refused = standing.blame >= COUNTED_CRASHES
    if (standing.refused) this.#suspects.delete(standing)
    else if (standing.crashes > 1) this.#suspects.add(standing)
    if (crash.own !== undefined) this.#weigh(standing, crash, crash.own)
  }

  /** How the engine of `session` ended: `own` = by itself. Comes before the next engine takes requests. */
  verdict(session: object, own: boolean): void {
    const crash = this.#crashOf(session)
    if (crash.own !== undefined) return
    crash.own = own
    for (const standing of crash.lost.keys()) this.#weigh(standing, crash, own)
  }

  #weigh(standing: Standing, crash: Crash, own: boolean): void {
    standing.ownCrashes = own ? standing.ownCrashes + 1 : 0
    if (!own || standing.refused || standing.over) return
    standing.refused = crash.blamed === standing && standing.ownCrashes >= OWN_CRASHES
    if (standing.refused) this.#suspects.delete(standing)
    else if (crash.lost.get(standing) === false) this.#suspects.add(standing)
  }

  /** The request got tokens; `clear`: by now it has come through. */
  progressed(standing: Standing, clear: boolean): void {
    standing.moved = true
    if (!clear) return
    standing.clear = true
    standing.crashes = 0
    standing.ownCrashes = 0
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
    standing.over = true
    this.excuse(standing)
    const place = this.#queue.findIndex((waiting) => waiting.standing === standing)
    if (place >= 0) this.#queue.splice(place, 1)[0]?.resolve()
  }

  /** What is asked once a crash, before it is told of the others. */
  #crashOf(session: object): Crash {
    const known = this.#crashes.get(session)
    if (known) return known
    // Other engines of the box have nothing to do with it.
    const open = [...this.#open].filter((standing) => standing.session === session)
    const [only] = open
    const blamed = open.length === 1 && only && !only.moved ? only : undefined
    const crash: Crash = { blamed, own: undefined, lost: new Map() }
    this.#crashes.set(session, crash)
    for (const standing of open) {
      this.#open.delete(standing)
      this.#round.delete(standing)
    }
    this.#cleared = 0
    // Those that wait have to look for the next engine first.
    for (const { resolve } of this.#queue.splice(0)) resolve()
    return crash
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
