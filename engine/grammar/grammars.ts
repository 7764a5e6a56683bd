import { createHash } from 'node:crypto'
import { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import type { Sequence } from '../scheduler/sequence.js'
import { GrammarError } from './grammar-error.js'
import { GrammarHome } from './grammar-home.js'
import type { GrammarVocabulary } from './vocabulary.js'

/** Different grammars at work at once; each takes a thread and, with its vocabulary, some 50 MB of the host. */
const MAX_HOMES = 8
/** Longest that a grammar waits for others to end, milliseconds. */
const WAIT_MS = 30_000
/** How long a grammar is kept without sequences, milliseconds. */
const IDLE_MS = 60_000

/** Every home is at work with another grammar: later it may go. */
export class GrammarsBusyError extends Error {
  constructor(readonly retryAfterMs: number) {
    super(`${MAX_HOMES} other grammars are at work`)
  }
}

/** What a home does here; a GrammarHome is one. */
export type Home = Pick<GrammarHome, 'bytes' | 'dead' | 'compile' | 'masks' | 'forget' | 'close'>

/** A home with what it keeps. */
interface Tenancy {
  home: Home
  vocabulary: GrammarVocabulary
  /** Of the grammar; undefined where that was refused. */
  key: string | undefined
  users: Set<Sequence>
  compiled: Promise<void>
  /** Ends it while it has no users. */
  idle: NodeJS.Timeout | undefined
}

/**
 * The grammars of an engine's sequences. Sequences of one grammar and vocabulary share a home; a new one takes over an
 * idle home or waits for one. Owns the homes: close it.
 */
export class Grammars {
  private readonly tenancies: Tenancy[] = []
  /** Whoever waits for a home to become free. */
  private waiting: (() => void)[] = []
  private closed = false

  constructor(private readonly newHome: (vocabulary: GrammarVocabulary) => Home = (of) => new GrammarHome(of)) {}

  /** What the homes' threads hold; of the host, beside every ledger. */
  get bytes(): number {
    return this.tenancies.reduce((sum, { home }) => sum + home.bytes, 0)
  }

  /** Homes that there are. */
  get size(): number {
    return this.tenancies.length
  }

  /**
   * Gives the sequence a home that keeps its grammar; release() it when it has ended, also in the meantime. Rejects with
   * GrammarError, and with GrammarsBusyError where no home became free.
   */
  async prepare(sequence: Sequence, grammar: Grammar, vocabulary: GrammarVocabulary): Promise<void> {
    const key = createHash('sha256').update(Grammar.encode(grammar).finish()).digest('base64')
    const until = performance.now() + WAIT_MS
    while (sequence.state !== 'finished') {
      const tenancy = this.find(key, vocabulary) ?? this.begin(key, grammar, vocabulary)
      if (tenancy) return this.enter(tenancy, sequence)
      if (performance.now() >= until) throw new GrammarsBusyError(WAIT_MS)
      await this.turn(until - performance.now())
    }
  }

  /** The sequence has ended. */
  release(sequence: Sequence): void {
    const tenancy = this.tenancies.find(({ users }) => users.delete(sequence))
    if (!tenancy) return
    tenancy.home.forget(sequence.arrival)
    if (tenancy.users.size > 0) return
    if (tenancy.home.dead) this.end(tenancy)
    else tenancy.idle = setTimeout(() => this.end(tenancy), IDLE_MS).unref()
    this.wake()
  }

  /** Ends every home; whoever waits is told. */
  close(): void {
    this.closed = true
    for (const tenancy of this.tenancies.slice()) this.end(tenancy)
    this.wake()
  }

  private find(key: string, vocabulary: GrammarVocabulary): Tenancy | undefined {
    return this.tenancies.find((one) => one.key === key && one.vocabulary === vocabulary && !one.home.dead)
  }

  /** A home for a grammar that has none; undefined while all are at work. */
  private begin(key: string, grammar: Grammar, vocabulary: GrammarVocabulary): Tenancy | undefined {
    if (this.closed) throw new GrammarError('the engine is stopping')
    const idle = this.tenancies.filter(({ users }) => users.size === 0)
    const fitting = idle.find((one) => one.vocabulary === vocabulary && !one.home.dead)
    if (!fitting && this.tenancies.length === MAX_HOMES) {
      const [oldest] = idle
      if (!oldest) return undefined
      this.end(oldest)
    }
    if (fitting) this.remove(fitting)
    const home = fitting?.home ?? this.newHome(vocabulary)
    const compiled = home.compile(grammar)
    const tenancy: Tenancy = { home, vocabulary, key, users: new Set(), compiled, idle: undefined }
    // Whoever entered is told by what it awaits.
    compiled.catch(() => (tenancy.key = undefined))
    this.tenancies.push(tenancy)
    return tenancy
  }

  private async enter(tenancy: Tenancy, sequence: Sequence): Promise<void> {
    clearTimeout(tenancy.idle)
    tenancy.users.add(sequence)
    await tenancy.compiled
    sequence.grammar = { home: tenancy.home, words: Math.ceil(tenancy.vocabulary.vocabSize / 32), accepted: 0 }
  }

  /** Resolves when a home may have become free, or after so many milliseconds. */
  private turn(limitMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, limitMs)
      this.waiting.push(() => {
        clearTimeout(timer)
        resolve()
      })
    })
  }

  /** In their order: the first takes what is free, the others wait on. */
  private wake(): void {
    const { waiting } = this
    this.waiting = []
    for (const go of waiting) go()
  }

  private end(tenancy: Tenancy): void {
    this.remove(tenancy)
    tenancy.home.close()
  }

  private remove(tenancy: Tenancy): void {
    clearTimeout(tenancy.idle)
    const at = this.tenancies.indexOf(tenancy)
    if (at >= 0) this.tenancies.splice(at, 1)
  }
}
