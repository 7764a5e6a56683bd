import { FinishReason, type SequenceError } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Sequence } from '../scheduler/sequence.js'
import { GrammarError } from './grammar-error.js'
import { Grammars, GrammarsBusyError } from './grammars.js'
import type { GrammarVocabulary } from './vocabulary.js'

/** Of the engine: what happens when a sequence may run. */
export interface DeskEngine {
  readonly options: { clock: () => number }
  wake(): void
}

/** From a request's grammar to a sequence that may run by it, or to the reason why not. Owns the grammars: close it. */
export class GrammarDesk {
  constructor(
    /** Throws where the model's text files cannot be read; the same object for the same model. */
    private readonly vocabularyOf: (model: string) => GrammarVocabulary,
    private readonly grammars = new Grammars(),
  ) {}

  /** What the threads of the grammars hold. */
  get bytes(): number {
    return this.grammars.bytes
  }

  /** Holds the sequence until its grammar is compiled, and ends it where it cannot be. */
  async open(sequence: Sequence, model: string, engine: DeskEngine): Promise<void> {
    const { clock } = engine.options
    const { grammar } = sequence.submit
    if (!grammar) return
    sequence.compilingSince = clock()
    try {
      await Promise.resolve()
      await this.grammars.prepare(sequence, grammar, this.vocabularyOf(model))
      sequence.compilingSince = undefined
    } catch (error) {
      sequence.holder?.end(sequence, FinishReason.REJECTED, clock(), refusal(error))
    }
    engine.wake()
  }

  /** The sequence has ended. */
  release(sequence: Sequence): void {
    if (sequence.submit.grammar) this.grammars.release(sequence)
  }

  /** Ends all that is at work. */
  close(): void {
    this.grammars.close()
  }
}

function refusal(error: unknown): SequenceError {
  const message = error instanceof Error ? error.message : String(error)
  if (error instanceof GrammarsBusyError) return { code: 'queue_full', message, retryAfterMs: error.retryAfterMs }
  return { code: error instanceof GrammarError ? 'invalid_request' : 'internal', message, retryAfterMs: 0 }
}
