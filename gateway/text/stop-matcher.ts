/** A stop string that was found: `start` is where it begins in the whole text, in UTF-16 units. */
export interface StopMatch {
  start: number
  stop: string
}

interface Automaton {
  stop: string
  /** fallback[n]: length of the longest proper prefix of `stop` that also ends its first n units. */
  fallback: Int32Array
  /** Units of `stop` that the text so far ends with. */
  matched: number
}

/**
 * Looks for stop strings in text that comes in pieces. The one that is complete first wins, and of those complete at
 * the same place the longest, so the result does not depend on how the text was cut. (Knuth, Morris, Pratt 1977, one
 * automaton for each stop string: text is read once.)
 */
export class StopMatcher {
  readonly #automata: Automaton[]
  #position = 0

  /** Empty stop strings are ignored; lone surrogates count as U+FFFD, as in the text. */
  constructor(stops: readonly string[]) {
    const wanted = new Set(stops.map(wellFormed).filter((stop) => stop !== ''))
    this.#automata = [...wanted].map((stop) => ({ stop, fallback: fallbackTable(stop), matched: 0 }))
  }

  /** Reads on. After a match the matcher is spent. */
  push(text: string): StopMatch | undefined {
    if (this.#automata.length === 0) {
      this.#position += text.length
      return undefined
    }
    for (let index = 0; index < text.length; index++) {
      this.#position++
      const stop = this.#advance(text.charCodeAt(index))
      if (stop !== undefined) return { start: this.#position - stop.length, stop }
    }
    return undefined
  }

  /** Passes over text in which stop strings do not count. */
  skip(text: string): void {
    this.#position += text.length
    for (const automaton of this.#automata) automaton.matched = 0
  }

  /** Units at the end of the text so far that may still become part of a stop string. */
  get held(): number {
    let held = 0
    for (const { matched } of this.#automata) if (matched > held) held = matched
    return held
  }

  #advance(unit: number): string | undefined {
    let found: string | undefined
    for (const automaton of this.#automata) {
      const { stop, fallback } = automaton
      let matched = automaton.matched
      while (matched > 0 && stop.charCodeAt(matched) !== unit) matched = fallback[matched] ?? 0
      if (stop.charCodeAt(matched) === unit) matched++
      automaton.matched = matched
      if (matched === stop.length && stop.length > (found?.length ?? 0)) found = stop
    }
    return found
  }
}

function fallbackTable(stop: string): Int32Array {
  const table = new Int32Array(stop.length + 1)
  let matched = 0
  for (let length = 2; length <= stop.length; length++) {
    const unit = stop.charCodeAt(length - 1)
    while (matched > 0 && stop.charCodeAt(matched) !== unit) matched = table[matched] ?? 0
    if (stop.charCodeAt(matched) === unit) matched++
    table[length] = matched
  }
  return table
}

function wellFormed(text: string): string {
  return Buffer.from(text, 'utf8').toString('utf8')
}
