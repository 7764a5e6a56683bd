import {
  FinishReason,
  type SequenceDelta,
  type SequenceError,
  type Submit,
  type TokenLogprob,
} from '../../proto/gen/edgeshift/v1/engine.js'
import type { GrammarState } from '../grammar/masks.js'
import type { Block } from '../kv/block-pool.js'
import type { BlockHash } from '../kv/block-hash.js'
import { rootHash } from '../kv/block-hash.js'
import type { SwapSpace } from '../kv/swap-space.js'

/** Where a sequence's deltas go. */
export interface SequenceOwner {
  /** Since when the reader has been too slow; while set, none of its sequences is scheduled. */
  readonly blockedSince: number | undefined
  /** Takes a delta without blocking; nothing follows one with a finish reason. */
  deliver(delta: SequenceDelta): void
}

/** Where a sequence waits or runs. */
export interface SequenceHolder {
  /** Ends a sequence that is held here; no effect on a finished one. */
  end(sequence: Sequence, reason: FinishReason, now: number, error?: SequenceError): void
}

/** The delta that ends a sequence without a token. */
export function endOf(sequenceId: number, finishReason: FinishReason, error?: SequenceError): SequenceDelta {
  return { sequenceId, tokens: [], logprobs: [], promptLogprobs: [], finishReason, error }
}

/** A held sequence is ended after this long, milliseconds. */
const HOLD_LIMIT_MS = 60_000

/** A preempted sequence's blocks in host memory: the keys and values of its first `tokens` tokens. */
export interface Swapped {
  readonly space: SwapSpace
  readonly tokens: number
  readonly blocks: readonly Block[]
  release(): void
}

/** waiting: in the queue, no slot, no blocks. running: has a slot and blocks. */
export type SequenceState = 'waiting' | 'running' | 'finished'

/** One request's sequence of tokens and where the engine stands with it. Times are milliseconds of the same clock. */
export class Sequence {
  state: SequenceState = 'waiting'
  holder: SequenceHolder | undefined
  /** Prompt, then output; the first `length` places count. */
  tokens: Int32Array
  length: number
  /** Tokens of the prompt as submitted, replayed output included. */
  readonly submittedLength: number
  /** Leading tokens whose KV is in the blocks or will be by a step already issued. */
  computed = 0
  /** Of those, what steps that have ended computed. */
  settled = 0
  /** Set while it is preempted and its blocks are kept. */
  swapped: Swapped | undefined
  /** Tokens sampled by issued steps whose results are not read yet; they follow `length`. */
  pending = 0
  blocks: Block[] = []
  /** Block table entries of `blocks`. */
  table = new Uint32Array(16)
  /** Hashes of the leading full blocks of known tokens, extended on demand. */
  readonly hashes: BlockHash[] = []
  /** Leading blocks already offered to the prefix cache. */
  published = 0
  slot = -1
  /** Changes at every preemption: results of older steps are dropped. */
  epoch = 0
  pausedSince: number | undefined
  /** Since when its grammar is being compiled: no step may include it meanwhile. */
  compilingSince: number | undefined
  /** Where it stands in its grammar; undefined where its output may be any text. */
  grammar: GrammarState | undefined
  /** Prompt positions scored so far, the first (without a value) included. */
  scored: TokenLogprob[] = []
  cachedTokens = 0
  firstScheduledAt: number | undefined
  started = false
  /** Of running batch work: the step that it was last part of. */
  lastStep = 0
  /** When the last of its steps ended, or it came; undefined while it waits by its own or its reader's doing. */
  progressAt: number | undefined
  readonly stopTokens: ReadonlySet<number>
  /** Total length at which it ends with LENGTH. */
  readonly maxLength: number
  readonly deadlineAt: number

  constructor(
    readonly submit: Submit,
    readonly owner: SequenceOwner,
    /** Order of arrival in the engine, unique. */
    readonly arrival: number,
    readonly arrivedAt: number,
    maxModelLen: number,
  ) {
    this.submittedLength = submit.prompt.length
    this.length = submit.prompt.length
    this.tokens = new Int32Array(this.length + Math.min(submit.maxTokens, 256))
    this.tokens.set(submit.prompt)
    this.stopTokens = new Set(submit.sampling?.stopTokenIds)
    this.maxLength = Math.min(this.submittedLength + submit.maxTokens, maxModelLen)
    this.deadlineAt = submit.deadlineMs > 0 ? arrivedAt + submit.deadlineMs : Infinity
  }

  get id(): number {
    return this.submit.sequenceId
  }

  /** Tokens that exist, read or not. */
  get extent(): number {
    return this.length + this.pending
  }

  /** Since when no step may include it (its grammar is not ready, its own reader or the session's is slow). */
  get heldSince(): number | undefined {
    return this.compilingSince ?? this.pausedSince ?? this.owner.blockedSince
  }

  /** With what it ends now because its deadline has passed or it was held too long; undefined while it may go on. */
  overdue(now: number): FinishReason | undefined {
    if (now >= this.deadlineAt) return FinishReason.DEADLINE
    const { heldSince } = this
    return heldSince !== undefined && now - heldSince >= HOLD_LIMIT_MS ? FinishReason.CANCELLED : undefined
  }

  /** Nothing is sampled: only the prompt's log probabilities are wanted. */
  get scoreOnly(): boolean {
    return this.submit.maxTokens === 0
  }

  /** Output tokens delivered by this and, for a replay, by earlier engines. */
  get outputLength(): number {
    return this.length - this.submittedLength + this.submit.replayedTokens
  }

  append(token: number): void {
    if (this.length === this.tokens.length) {
      const grown = new Int32Array(Math.min(this.length * 2, Math.max(this.maxLength, this.length + 1)))
      grown.set(this.tokens)
      this.tokens = grown
    }
    this.tokens[this.length++] = token
  }

  addBlock(block: Block): void {
    if (this.blocks.length === this.table.length) {
      const grown = new Uint32Array(this.table.length * 2)
      grown.set(this.table)
      this.table = grown
    }
    this.table[this.blocks.length] = block.entry
    this.blocks.push(block)
  }

  /** Its blocks were released: nothing is computed any more. */
  forgetBlocks(): void {
    this.blocks = []
    this.computed = 0
    this.settled = 0
    this.published = 0
  }

  /** Gives back the host memory of its blocks, if there is any. */
  dropSwapped(): void {
    this.swapped?.release()
    this.swapped = undefined
  }

  /** Tokens of the prompt as first submitted. */
  get promptLength(): number {
    return this.submit.prompt.length - this.submit.replayedTokens
  }

  /** Start of the hash chain, for the first block's hash; prompts longer than `ropeLimit` share with their own length. */
  rootHash(ropeLimit: number): BlockHash {
    return rootHash(this.submit.tenant, this.promptLength > ropeLimit ? this.promptLength : 0)
  }
}

/** Scheduling order among equals of the queue: priority, then arrival. */
export function compareSequences(a: Sequence, b: Sequence): number {
  return a.submit.priority - b.submit.priority || a.arrival - b.arrival
}
