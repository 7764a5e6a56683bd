import { MAX_REQUEST_BYTES } from '../../engine/config/index.js'
import type { Command, SamplingParams, Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'

/** Beyond either, a queue is full. Both are above what one request of the most choices can be, and a full engine's replay. */
const MAX_COMMANDS = 4096
const MAX_BYTES = 512 * 2 ** 20

/** What goes into one message, unless a single command has more: each is encoded in one piece, and nothing runs meanwhile. */
const SLICE_BYTES = 2 ** 20

/** Bytes of a command's fields of one number each, with the tags and lengths of all its fields. */
const FIXED_BYTES = 256
/** No vocabulary has 2^28 ids, so that one takes at most four groups of seven bits. */
const TOKEN_BYTES = 4
const BIAS_BYTES = 16
/** UTF-8 bytes of a UTF-16 code unit, at most. */
const CHARACTER_BYTES = 3
/** Tag and length of a text. */
const TEXT_BYTES = 6

/** Bytes that a command takes in a message, at most; not far above what it does take. */
export function commandBytes({ kind }: Command): number {
  return FIXED_BYTES + (kind?.$case === 'submit' ? submitBytes(kind.submit) : 0)
}

function submitBytes({ prompt, sampling, variant, tenant, traceparent, grammar }: Submit): number {
  const characters = variant.length + tenant.length + traceparent.length
  const head = characters * CHARACTER_BYTES
  return prompt.length * TOKEN_BYTES + samplingBytes(sampling) + head + grammarBytes(grammar)
}

function samplingBytes(sampling: SamplingParams | undefined): number {
  if (sampling === undefined) return 0
  return sampling.logitBias.size * BIAS_BYTES + sampling.stopTokenIds.length * TOKEN_BYTES
}

function grammarBytes(grammar: Grammar | undefined): number {
  return textsOf(grammar).reduce((sum, text) => sum + TEXT_BYTES + text.length * CHARACTER_BYTES, 0)
}

function textsOf(grammar: Grammar | undefined): string[] {
  const kind = grammar?.kind
  switch (kind?.$case) {
    case 'jsonSchema':
      return [kind.jsonSchema]
    case 'regex':
      return [kind.regex]
    case 'ebnf':
      return [kind.ebnf]
    case 'choice':
      return kind.choice.texts
    default:
      return []
  }
}

/** True when a command can be sent: it has room in a message of its own. */
export function fitsMessage(command: Command): boolean {
  return commandBytes(command) <= MAX_REQUEST_BYTES
}

/** What is to be said to an engine, in order, in messages that it takes. */
export class CommandQueue {
  #commands: Command[] = []
  #bytes = 0

  /** No further work should be put in; what ends work may be. */
  get full(): boolean {
    return this.#commands.length >= MAX_COMMANDS || this.#bytes >= MAX_BYTES
  }

  get empty(): boolean {
    return this.#commands.length === 0
  }

  /** Precondition: `fitsMessage(command)`. */
  push(command: Command): void {
    this.#commands.push(command)
    this.#bytes += commandBytes(command)
  }

  /** Takes the oldest commands that go into one message: as many as fit into a slice, at least one of those there are. */
  take(): Command[] {
    let bytes = 0
    let count = 0
    for (const command of this.#commands) {
      const more = commandBytes(command)
      if (count > 0 && bytes + more > SLICE_BYTES) break
      bytes += more
      count++
    }
    this.#bytes -= bytes
    return this.#commands.splice(0, count)
  }

  clear(): void {
    this.#commands = []
    this.#bytes = 0
  }
}
