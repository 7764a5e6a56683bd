import { GrammarError } from './grammar-error.js'
import type { Network, NetworkState } from './network.js'

/** Ways through a grammar that may be open at once. */
const MAX_WAYS = 10_000
/** Places that are remembered before all are forgotten, and their ways. */
const MAX_PLACES = 20_000
const MAX_KEPT_WAYS = 500_000

/** Where rules that were called go on, the last on top. */
interface Stack {
  readonly id: number
  readonly state: NetworkState
  readonly below: Stack | undefined
}

/** A state before its bytes, with what is called around it. */
interface Way {
  readonly state: NetworkState
  readonly stack: Stack | undefined
}

/** Where a text stands in the grammar: equal for texts that can go on alike. */
export interface Place {
  readonly ways: readonly Way[]
  /** The text may end here. */
  readonly ends: boolean
  /** Of which memory it is. */
  readonly age: number
  /** By class of bytes: the next place, null where there is none; undefined until somebody asks. */
  readonly next: (Place | null | undefined)[]
}

/**
 * Reads texts by a network, byte by byte: a deterministic automaton made on the way, whose places are sets of states with
 * their stacks. Places that were reached before cost a lookup.
 */
export class Matcher {
  /** Classes of bytes that no edge tells apart, by byte. */
  readonly classOf = new Uint8Array(256)
  /** Of the empty text. */
  readonly begin: Place
  private readonly classes: number
  private stacks = new Map<string, Stack>()
  private places = new Map<string, Place>()
  private lastStack = 0
  private age = 0
  private keptWays = 0

  constructor(
    network: Network,
    private readonly maxPlaces = MAX_PLACES,
  ) {
    this.classes = this.classify(network)
    this.begin = this.place([{ state: network.root.start, stack: undefined }])
  }

  /** The place behind a byte; null where none of the grammar's texts goes there. */
  step(from: Place, byte: number): Place | null {
    const byteClass = this.classOf[byte] ?? 0
    const known = from.next[byteClass]
    if (known !== undefined) return known
    const next: Way[] = []
    for (const { state, stack } of from.ways) {
      for (const { low, high, to } of state.bytes) if (low <= byte && byte <= high) next.push({ state: to, stack })
    }
    const place = next.length === 0 ? null : this.place(next)
    from.next[byteClass] = place
    return place
  }

  /** The place behind more bytes; null where none of the grammar's texts goes there. */
  read(from: Place, bytes: Uint8Array): Place | null {
    let at: Place | null = from
    for (let i = 0; i < bytes.length && at; i++) at = this.step(at, bytes[i] ?? 0)
    return at
  }

  /** The same place as it is remembered now: what goes on from an old one would keep all that was forgotten. */
  current(place: Place): Place {
    return place.age === this.age ? place : this.remember(place.ways, place.ends)
  }

  private classify({ states }: Network): number {
    const begins = new Uint8Array(257)
    for (const { bytes } of states) {
      for (const { low, high } of bytes) begins[low] = begins[high + 1] = 1
    }
    let count = 0
    for (let byte = 0; byte < 256; byte++) {
      if (byte > 0 && begins[byte]) count++
      this.classOf[byte] = count
    }
    return count + 1
  }

  /** Follows every way up to the bytes that it waits for. */
  private place(ways: readonly Way[]): Place {
    const seen = new Set<string>()
    const waiting: Way[] = []
    const todo = [...ways]
    let ends = false
    for (let way = todo.pop(); way; way = todo.pop()) {
      const { state, stack } = way
      const key = `${state.id},${stack?.id ?? 0}`
      if (seen.has(key)) continue
      seen.add(key)
      if (seen.size > MAX_WAYS)
        throw new GrammarError(`more than ${MAX_WAYS} ways through the grammar are open at once`)
      if (state.bytes.length > 0) waiting.push(way)
      for (const to of state.empty) todo.push({ state: to, stack })
      // Where nothing follows there is nothing to come back to: long lists need no deep stacks.
      for (const { rule, to } of state.calls) {
        todo.push({ state: rule.start, stack: to.isLast ? stack : this.push(stack, to) })
      }
      if (!state.ends) continue
      if (stack) todo.push({ state: stack.state, stack: stack.below })
      else ends = true
    }
    return this.remember(waiting, ends)
  }

  private push(below: Stack | undefined, state: NetworkState): Stack {
    const key = `${state.id},${below?.id ?? 0}`
    const known = this.stacks.get(key)
    if (known) return known
    const stack = { id: ++this.lastStack, state, below }
    this.stacks.set(key, stack)
    return stack
  }

  private remember(ways: readonly Way[], ends: boolean): Place {
    const key = `${ends} ${ways
      .map(({ state, stack }) => `${state.id},${stack?.id ?? 0}`)
      .toSorted()
      .join(' ')}`
    const known = this.places.get(key)
    if (known) return known
    if (this.places.size >= this.maxPlaces || this.keptWays >= MAX_KEPT_WAYS) this.forget()
    const place: Place = { ways, ends, age: this.age, next: Array.from({ length: this.classes }) }
    this.places.set(key, place)
    this.keptWays += ways.length
    return place
  }

  /** Places that somebody still holds are remembered anew when they are used; none of them keeps others. */
  private forget(): void {
    for (const { next } of this.places.values()) next.fill(undefined)
    this.places = new Map()
    this.keptWays = 0
    this.stacks = new Map()
    this.age++
  }
}
