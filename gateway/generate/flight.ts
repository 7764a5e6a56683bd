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

/** One request's sequences in the engine: which choice has which, on which session. Owns them until they end. */
export class Flight {
  readonly work: Work
  #session: SequenceSession | undefined
  /** Sequence id by choice; 0 while it has none. */
  readonly #ids: number[]

  constructor(work: Work) {
    this.work = work
    this.#ids = Array.from({ length: work.request.n }, () => 0)
  }

  /** Where its sequences are, or were when it was lost. */
  get session(): SequenceSession | undefined {
    return this.#session
  }

  /** Begins a choice, or goes on with one where it was lost. Throws context_length_exceeded and what submit throws. */
  submit(choice: Choice, { session, route, contextLimit }: Placement, deadlineMs: number, paused: boolean): void {
    const { request, prompt, text, seed, maxTokens } = this.work
    const { variant } = route
    const length = { prompt: prompt.length, generated: choice.generated.length }
    const left = remainingBudget(length, maxTokens, request.maxTokens !== undefined, contextLimit, variant)
    const resolved = { variant, maxTokens: left, deadlineMs, text }
    this.#session = session
    const id = session.submit(toSubmission(request, choice, prompt, seed, resolved), choice)
    this.#ids[choice.index] = id
    if (paused) session.setPaused(id, true)
  }

  /** The choice's sequence has ended, or is lost. */
  forget(choice: Choice): void {
    this.#ids[choice.index] = 0
  }

  /** Stops the choice's sequence; nothing where it has none. */
  cancel(index: number): void {
    const id = this.#ids[index]
    if (id) this.#session?.cancel(id)
    this.#ids[index] = 0
  }

  cancelAll(): void {
    for (let index = 0; index < this.#ids.length; index++) this.cancel(index)
  }

  setPaused(paused: boolean): void {
    for (const id of this.#ids) if (id) this.#session?.setPaused(id, paused)
  }
}
