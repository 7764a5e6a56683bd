import type { EngineSession } from '../engine-client/session.js'
import type { GenerateRequest } from '../request.js'
import type { Route } from '../router/facts.js'
import type { TextModel } from '../text/types.js'
import type { Choice } from './choice.js'
import { remainingBudget, toSubmission } from './submission.js'

/** The part of a session that requests need. */
export type SequenceSession = Pick<EngineSession, 'submit' | 'cancel' | 'setPaused' | 'open'>

/** Where a request may run now. */
export interface Placement {
  session: SequenceSession
  route: Route
  /** Tokens of prompt and answer together. */
  contextLimit: number
}

/** What is asked of the engine, the same however often it is asked. */
export interface Work {
  request: GenerateRequest
  prompt: number[]
  text: TextModel
  /** Of choice 0. */
  seed: number
  /** Tokens that every choice may have in all. */
  maxTokens: number
}

/** One sequence: where it is, the rung it is for, and its id there. Each session counts its own ids. */
export interface Sequence {
  session: SequenceSession
  route: Route
  id: number
}

/** One request's sequences in the engines, which may be of several sessions. Owns them until they end. */
export class Flight {
  readonly work: Work
  /** By choice; undefined while it has none. */
  readonly #sequences: (Sequence | undefined)[]

  constructor(work: Work) {
    this.work = work
    this.#sequences = Array.from({ length: work.request.n }, () => undefined)
  }

  /** Begins a choice, or goes on with one where it was lost. Throws context_length_exceeded and what submit throws. */
  submit(choice: Choice, { session, route, contextLimit }: Placement, deadlineMs: number, paused: boolean): void {
    const { request, prompt, text, seed, maxTokens } = this.work
    const { variant } = route
    const length = { prompt: prompt.length, generated: choice.generated.length }
    const left = remainingBudget(length, maxTokens, request.maxTokens !== undefined, contextLimit, variant)
    const resolved = { variant, maxTokens: left, deadlineMs, text }
    const id = session.submit(toSubmission(request, choice, prompt, seed, resolved), choice)
    this.#sequences[choice.index] = { session, route, id }
    if (paused) session.setPaused(id, true)
  }

  /** Where the choice is; undefined while it has no sequence. */
  routeOf({ index }: Choice): Route | undefined {
    return this.#sequences[index]?.route
  }

  /** The choice's sequence has ended, or is lost; says where it was, undefined where it had none. */
  forget({ index }: Choice): Sequence | undefined {
    const sequence = this.#sequences[index]
    this.#sequences[index] = undefined
    return sequence
  }

  /** Stops the choice's sequence; nothing where it has none. */
  cancel(index: number): void {
    const sequence = this.#sequences[index]
    this.#sequences[index] = undefined
    sequence?.session.cancel(sequence.id)
  }

  cancelAll(): void {
    for (let index = 0; index < this.#sequences.length; index++) this.cancel(index)
  }

  setPaused(paused: boolean): void {
    for (const sequence of this.#sequences) sequence?.session.setPaused(sequence.id, paused)
  }
}
