import { TrialLine } from './trial-line.js'

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
 * 3. While suspects wait at an engine, or are tried there, its gate is shut: first those run that are none, together; then
 *    the suspects, one at a time, in the order of least blame, most crashes, least progress, arrival. Where they are many,
 *    more at a time as more have come through (a quarter of their number). New requests to it wait until all have had
 *    their turn. A suspect whose engine or rung has not come back keeps nobody waiting: it is tried when it comes.
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

/** Lets requests into the engines; see above. */
export class TrialGate {
  /** Lost at two crashes or more, neither through nor given up on; also those that are on their way to the next engine. */
  readonly #suspects = new Set<Standing>()
  /** By session, until it ends: what one engine's requests wait for is no affair of another's. */
  readonly #lines = new Map<object, TrialLine>()
  /** By the session that ended: how one engine ended may be known only after the next one has, too. */
  readonly #crashes = new WeakMap<object, Crash>()

  /** Requests that wait at the gate. */
  get waiting(): number {
    let sum = 0
    for (const line of this.#lines.values()) sum += line.waiting
    return sum
  }

  /** A request is about to be submitted to `session`. Undefined: now; otherwise when the promise resolves. It never rejects. */
  enter(standing: Standing, session: object): Promise<void> | undefined {
    standing.moved = false
    this.#leave(standing)
    standing.session = session
    // Nobody is let in to a session that has ended: its owner sees that, too.
    return this.#crashes.has(session) ? undefined : this.#lineOf(session).enter(standing)
  }

  /** `session` ended with the request in flight; says by `refused` whether that was once too often. Once a session. */
  lost(standing: Standing, session: object): void {
    const crash = this.#crashOf(session)
    if (crash.lost.has(standing)) return
    standing.stuck = !standing.moved
    const { clear } = standing
    crash.lost.set(standing, clear)
    standing.blame = (clear ? 0 : standing.blame) + (crash.blamed === standing ? 1 : 0)
    standing.crashes = (clear ? 0 : standing.crashes) + 1
    if (clear) standing.ownCrashes = 0
    standing.clear = false
    standing.refused = standing.blame >= COUNTED_CRASHES
    if (standing.refused) this.#suspects.delete(standing)
    else if (standing.crashes > 1) this.#suspect(standing)
    if (crash.own !== undefined) this.#weigh(standing, crash, crash.own)
  }

  /** How the engine of `session` ended: `own` = by itself. Comes before that engine's next process takes requests. */
  verdict(session: object, own: boolean): void {
    const crash = this.#crashOf(session)
    if (crash.own !== undefined) return
    crash.own = own
    for (const standing of crash.lost.keys()) this.#weigh(standing, crash, own)
  }

  #weigh(standing: Standing, crash: Crash, own: boolean): void {
    // It went on at another engine and has come through there.
    if (standing.clear) return
    standing.ownCrashes = own ? standing.ownCrashes + 1 : 0
    if (!own || standing.refused || standing.over) return
    standing.refused = crash.blamed === standing && standing.ownCrashes >= OWN_CRASHES
    if (standing.refused) this.#suspects.delete(standing)
    else if (crash.lost.get(standing) === false) this.#suspect(standing)
  }

  #suspect(standing: Standing): void {
    this.#suspects.add(standing)
    // It may run at another engine already.
    this.#placeOf(standing)?.hold(standing)
  }

  /** The request got tokens; `clear`: by now it has come through. */
  progressed(standing: Standing, clear: boolean): void {
    standing.moved = true
    if (!clear) return
    standing.clear = true
    standing.crashes = 0
    standing.ownCrashes = 0
    standing.blame = 0
    if (this.#suspects.delete(standing)) this.#placeOf(standing)?.countCleared()
    this.#leave(standing)
  }

  /** It was let in, but no engine has anything of it now: it is tried when it comes again. */
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
    this.#placeOf(standing)?.dismiss(standing)
  }

  /** What is asked once a crash, before it is told of the others. Ends the session's line. */
  #crashOf(session: object): Crash {
    const known = this.#crashes.get(session)
    if (known) return known
    const line = this.#lines.get(session)
    // Other engines of the box have nothing to do with it.
    const open = line?.open ?? []
    const [only] = open
    const blamed = open.length === 1 && only && !only.moved ? only : undefined
    const crash: Crash = { blamed, own: undefined, lost: new Map() }
    this.#crashes.set(session, crash)
    this.#lines.delete(session)
    line?.close()
    return crash
  }

  #lineOf(session: object): TrialLine {
    const known = this.#lines.get(session)
    if (known) return known
    const line = new TrialLine(this.#suspects)
    this.#lines.set(session, line)
    return line
  }

  /** Where the request was last let in, or waits; undefined when that session has ended. */
  #placeOf({ session }: Standing): TrialLine | undefined {
    return session && this.#lines.get(session)
  }

  #leave(standing: Standing): void {
    this.#placeOf(standing)?.leave(standing)
  }
}
