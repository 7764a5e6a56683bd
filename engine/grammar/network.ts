import { type CodeRange, utf8Sequences } from './code-points.js'
import type { Expression, GrammarRules } from './expression.js'
import { GrammarError } from './grammar-error.js'

/** States that a grammar may have. */
const MAX_STATES = 400_000

/** A byte of a range leads to another state. */
export interface ByteEdge {
  readonly low: number
  readonly high: number
  readonly to: NetworkState
}

/** A rule has to be gone through before the other state is reached. */
export interface CallEdge {
  readonly rule: NetworkRule
  readonly to: NetworkState
}

/** One place in a rule. */
export class NetworkState {
  bytes: ByteEdge[] = []
  calls: CallEdge[] = []
  empty: NetworkState[] = []
  /** The rule may end here. */
  ends = false
  /** Nothing follows but the rule's end. */
  isLast = false

  constructor(readonly id: number) {}
}

/** A rule as a network of states. */
export interface NetworkRule {
  readonly name: string
  readonly start: NetworkState
  readonly end: NetworkState
}

/** A grammar as a recursive transition network over bytes (Woods 1970). */
export interface Network {
  readonly root: NetworkRule
  readonly rules: readonly NetworkRule[]
  readonly states: readonly NetworkState[]
}

/**
 * Builds a grammar's network without what leads nowhere. Throws GrammarError for rules that are missing, for left
 * recursion, for a grammar that no finite text follows, and for one that is too large.
 */
export function buildNetwork(rules: GrammarRules): Network {
  const network = new Builder(rules).build()
  prune(network)
  markLast(network)
  checkLeftRecursion(network)
  return network
}

class Builder {
  private readonly states: NetworkState[] = []
  private readonly rules = new Map<string, NetworkRule>()
  private readonly todo: { rule: NetworkRule; body: Expression }[] = []

  constructor(private readonly given: GrammarRules) {}

  build(): Network {
    const root = this.ruleOf('root')
    for (let next = this.todo.pop(); next; next = this.todo.pop()) {
      this.connect(next.body, next.rule.start, next.rule.end)
    }
    return { root, rules: [...this.rules.values()], states: this.states }
  }

  private state(): NetworkState {
    if (this.states.length >= MAX_STATES) throw new GrammarError('the grammar is too large')
    const state = new NetworkState(this.states.length)
    this.states.push(state)
    return state
  }

  private ruleOf(name: string): NetworkRule {
    const known = this.rules.get(name)
    if (known) return known
    const body = this.given.get(name)
    if (!body) throw new GrammarError(`there is no rule ${name.slice(0, 100)}`)
    return this.add(name, body)
  }

  private add(name: string, body: Expression): NetworkRule {
    const rule = { name, start: this.state(), end: this.state() }
    rule.end.ends = true
    this.rules.set(name, rule)
    this.todo.push({ rule, body })
    return rule
  }

  /** What is repeated is one rule, however often it comes: only the calls of it are many. */
  private shared(item: Expression): Expression {
    if (item.type === 'rule' || (item.type === 'bytes' && item.bytes.length === 1)) return item
    if (item.type === 'set' && item.ranges.every(([, high]) => high < 0x80)) return item
    const name = `(${this.rules.size})`
    this.add(name, item)
    return { type: 'rule', name }
  }

  private connect(expression: Expression, from: NetworkState, to: NetworkState): void {
    switch (expression.type) {
      case 'bytes':
        return this.connectBytes(
          [...expression.bytes].map((byte) => [byte, byte]),
          from,
          to,
        )
      case 'set':
        for (const bytes of utf8Sequences(expression.ranges)) this.connectBytes(bytes, from, to)
        return
      case 'sequence':
        return this.connectSequence(expression.items, from, to)
      case 'choice':
        return this.connectChoice(expression.items, from, to)
      case 'rule':
        from.calls.push({ rule: this.ruleOf(expression.name), to })
        return
      default:
        return this.connectRepeat(expression, from, to)
    }
  }

  private connectBytes(bytes: readonly CodeRange[], from: NetworkState, to: NetworkState): void {
    if (bytes.length === 0) from.empty.push(to)
    let at = from
    for (const [i, [low, high]] of bytes.entries()) {
      const next = i === bytes.length - 1 ? to : this.state()
      at.bytes.push({ low, high, to: next })
      at = next
    }
  }

  /** Texts that begin alike share their states: of thousands few ways are open at once. */
  private connectChoice(items: readonly Expression[], from: NetworkState, to: NetworkState): void {
    /** By state and byte. */
    const shared = new Map<number, NetworkState>()
    for (const item of items) {
      if (item.type !== 'bytes' || item.bytes.length === 0) {
        this.connect(item, from, to)
        continue
      }
      let at = from
      for (const byte of item.bytes.subarray(0, -1)) {
        const key = at.id * 256 + byte
        const next = shared.get(key) ?? this.state()
        if (!shared.has(key)) at.bytes.push({ low: byte, high: byte, to: next })
        shared.set(key, next)
        at = next
      }
      const last = item.bytes.at(-1) ?? 0
      at.bytes.push({ low: last, high: last, to })
    }
  }

  private connectSequence(items: readonly Expression[], from: NetworkState, to: NetworkState): void {
    if (items.length === 0) from.empty.push(to)
    let at = from
    for (const [i, item] of items.entries()) {
      const next = i === items.length - 1 ? to : this.state()
      this.connect(item, at, next)
      at = next
    }
  }

  private connectRepeat(
    { item, min, max }: Expression & { type: 'repeat' },
    from: NetworkState,
    to: NetworkState,
  ): void {
    const one = max > 1 ? this.shared(item) : item
    let at = from
    for (let i = 0; i < min; i++) {
      const next = this.state()
      this.connect(one, at, next)
      at = next
    }
    if (max === Infinity) {
      const loop = this.state()
      at.empty.push(loop)
      this.connect(one, loop, loop)
      loop.empty.push(to)
      return
    }
    for (let i = min; i < max; i++) {
      const next = this.state()
      at.empty.push(to)
      this.connect(one, at, next)
      at = next
    }
    at.empty.push(to)
  }
}

/** Drops the edges to states from which no end can be reached: no text goes there. */
function prune({ root, states }: Network): void {
  const productive = new Set(states.filter(({ ends }) => ends))
  const before = states.map((): NetworkState[] => [])
  /** Calls by the states that have to be productive: the rule's first and the one behind. */
  const calls = new Map<NetworkState, (CallEdge & { from: NetworkState })[]>()
  const waitFor = (state: NetworkState, call: CallEdge & { from: NetworkState }): void => {
    const list = calls.get(state)
    if (list) list.push(call)
    else calls.set(state, [call])
  }
  for (const from of states) {
    for (const { to } of from.bytes) before[to.id]?.push(from)
    for (const to of from.empty) before[to.id]?.push(from)
    for (const { rule, to } of from.calls) for (const state of [rule.start, to]) waitFor(state, { rule, to, from })
  }
  // The set grows on the way.
  for (const state of productive) {
    for (const from of before[state.id] ?? []) productive.add(from)
    for (const { rule, to, from } of calls.get(state) ?? []) {
      if (productive.has(rule.start) && productive.has(to)) productive.add(from)
    }
  }
  if (!productive.has(root.start)) throw new GrammarError('no text follows the grammar: nothing ends it')
  if (productive.size === states.length) return
  for (const state of states) {
    state.bytes = state.bytes.filter(({ to }) => productive.has(to))
    state.calls = state.calls.filter(({ rule, to }) => productive.has(to) && productive.has(rule.start))
    state.empty = state.empty.filter((to) => productive.has(to))
  }
}

/** Finds the states behind which a pruned network has neither bytes nor calls. */
function markLast({ states }: Network): void {
  const before = states.map((): NetworkState[] => [])
  for (const from of states) for (const to of from.empty) before[to.id]?.push(from)
  const followed = new Set(states.filter(({ bytes, calls }) => bytes.length + calls.length > 0))
  for (const state of followed) for (const from of before[state.id] ?? []) followed.add(from)
  for (const state of states) state.isLast = !followed.has(state)
}

/** A rule that comes to itself before any byte would be gone into for ever. */
function checkLeftRecursion({ rules }: Network): void {
  const firsts = firstCalls(rules)
  const done = new Set<NetworkRule>()
  for (const rule of rules) {
    // Depth first, without recursion: a chain may be as long as the grammar.
    const path: { rule: NetworkRule; left: NetworkRule[] }[] = []
    const open = new Set<NetworkRule>()
    const enter = (next: NetworkRule): void => {
      if (open.has(next))
        throw new GrammarError(`${next.name.slice(0, 100)} begins with itself: left recursion is not kept`)
      if (done.has(next)) return
      open.add(next)
      path.push({ rule: next, left: [...(firsts.get(next) ?? [])] })
    }
    enter(rule)
    for (let top = path.at(-1); top; top = path.at(-1)) {
      const next = top.left.pop()
      if (next) enter(next)
      else {
        open.delete(top.rule)
        done.add(top.rule)
        path.pop()
      }
    }
  }
}

/** By rule: those that it may go into before its first byte. */
function firstCalls(rules: readonly NetworkRule[]): Map<NetworkRule, Set<NetworkRule>> {
  const firsts = new Map<NetworkRule, Set<NetworkRule>>(rules.map((rule) => [rule, new Set()]))
  /** States before the first byte of the rule that they belong to. */
  const early = new Map<NetworkState, NetworkRule>(rules.map((rule) => [rule.start, rule]))
  /** Rules that the empty text follows. */
  const nullable = new Set<NetworkRule>()
  /** Early states behind a call, by what is called; the call's rule is not known to be nullable. */
  const behind = new Map<NetworkRule, [state: NetworkState, owner: NetworkRule][]>(rules.map((rule) => [rule, []]))
  const reach = (state: NetworkState, owner: NetworkRule): void => {
    if (!early.has(state)) early.set(state, owner)
  }
  // The map grows on the way.
  for (const [state, owner] of early) {
    for (const to of state.empty) reach(to, owner)
    for (const { rule, to } of state.calls) {
      firsts.get(owner)?.add(rule)
      if (nullable.has(rule)) reach(to, owner)
      else behind.get(rule)?.push([to, owner])
    }
    if (!state.ends || nullable.has(owner)) continue
    nullable.add(owner)
    for (const [to, caller] of behind.get(owner) ?? []) reach(to, caller)
  }
  return firsts
}
