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
  readonly bytes: ByteEdge[] = []
  readonly calls: CallEdge[] = []
  readonly empty: NetworkState[] = []
  /** The rule may end here. */
  ends = false

  constructor(readonly id: number) {}

  /** Nothing follows but the rule's end. */
  get isEnd(): boolean {
    return this.ends && this.bytes.length === 0 && this.calls.length === 0 && this.empty.length === 0
  }
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
        for (const item of expression.items) this.connect(item, from, to)
        return
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
function prune({ root, rules, states }: Network): void {
  const productive = new Set<NetworkState>()
  const before = new Map<NetworkState, { from: NetworkState; rule?: NetworkRule }[]>()
  const add = (to: NetworkState, from: NetworkState, rule?: NetworkRule): void => {
    const list = before.get(to) ?? []
    if (list.length === 0) before.set(to, list)
    list.push(rule ? { from, rule } : { from })
  }
  const callers = new Map<NetworkRule, { from: NetworkState; to: NetworkState }[]>(rules.map((rule) => [rule, []]))
  for (const from of states) {
    for (const { to } of from.bytes) add(to, from)
    for (const to of from.empty) add(to, from)
    for (const { rule, to } of from.calls) {
      add(to, from, rule)
      callers.get(rule)?.push({ from, to })
    }
  }
  const ruleOfStart = new Map(rules.map((rule) => [rule.start, rule]))
  const found = states.filter(({ ends }) => ends)
  const mark = (state: NetworkState): void => {
    if (productive.has(state)) return
    productive.add(state)
    found.push(state)
  }
  for (const state of found) productive.add(state)
  for (let state = found.pop(); state; state = found.pop()) {
    for (const { from, rule } of before.get(state) ?? []) {
      if (!rule || productive.has(rule.start)) mark(from)
    }
    const started = ruleOfStart.get(state)
    for (const { from, to } of started ? (callers.get(started) ?? []) : []) if (productive.has(to)) mark(from)
  }
  if (!productive.has(root.start)) throw new GrammarError('no text follows the grammar: nothing ends it')
  const keep = <T extends { to: NetworkState; rule?: NetworkRule }>(edges: T[]): void => {
    const kept = edges.filter(({ to, rule }) => productive.has(to) && (!rule || productive.has(rule.start)))
    edges.splice(0, edges.length, ...kept)
  }
  for (const state of states) {
    keep(state.bytes)
    keep(state.calls)
    const kept = state.empty.filter((to) => productive.has(to))
    state.empty.splice(0, state.empty.length, ...kept)
  }
}

/** A rule that comes to itself before any byte would be gone into for ever. */
function checkLeftRecursion({ rules }: Network): void {
  const nullable = nullableRules(rules)
  const firsts = new Map(rules.map((rule) => [rule, firstCalls(rule, nullable)]))
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

/** Rules that the empty text follows. */
function nullableRules(rules: readonly NetworkRule[]): Set<NetworkRule> {
  const nullable = new Set<NetworkRule>()
  for (let grown = true; grown;) {
    grown = false
    for (const rule of rules) {
      if (nullable.has(rule) || ![...reachable(rule, nullable)].some(({ ends }) => ends)) continue
      nullable.add(rule)
      grown = true
    }
  }
  return nullable
}

function firstCalls(rule: NetworkRule, nullable: ReadonlySet<NetworkRule>): Set<NetworkRule> {
  return new Set([...reachable(rule, nullable)].flatMap(({ calls }) => calls.map((call) => call.rule)))
}

/** States of a rule before its first byte. */
function reachable({ start }: NetworkRule, nullable: ReadonlySet<NetworkRule>): Set<NetworkState> {
  const seen = new Set([start])
  for (const state of seen) {
    for (const to of state.empty) seen.add(to)
    for (const { rule, to } of state.calls) if (nullable.has(rule)) seen.add(to)
  }
  return seen
}
