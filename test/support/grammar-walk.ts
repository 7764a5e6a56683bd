/** Random texts of a grammar: tokens drawn among those that its masks allow. */
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { GrammarKeeper } from '../../engine/grammar/keeper.js'
import { TokenTrie } from '../../engine/grammar/token-trie.js'
import { type GrammarVocabulary, vocabularyBytes } from '../../engine/grammar/vocabulary.js'
import { TINY_VOCAB_SIZE, tinyTokenizerAssets, tinyTokens } from './tiny-tokenizer.js'

/** Tokens after which a walk only wants to come to an end. */
const PATIENCE = 60
const LIMIT = 2000

/** Characters that lead to an end, the best first. */
const CLOSING = Array.from('"}]0elsaurfn :{[', (character) => tinyTokens(character)[0] ?? 0)

/** The vocabulary of the tiny tokenizer: one token for each byte. */
export const tinyVocabulary: GrammarVocabulary = {
  tokenizer: tinyTokenizerAssets(8192).find(({ name }) => name === 'tokenizer.json')?.data ?? new Uint8Array(),
  vocabSize: TINY_VOCAB_SIZE,
}

/** A keeper of a grammar over the tiny vocabulary. */
export function tinyKeeper(kind: Grammar['kind']): GrammarKeeper {
  return new GrammarKeeper({ kind }, tinyTrie)
}

const tinyTrie = new TokenTrie(vocabularyBytes(tinyVocabulary))
let sequences = 0

/** Ids that a mask allows. */
export function allowedTokens(mask: Uint32Array): number[] {
  return Array.from({ length: mask.length * 32 }, (_, id) => id).filter(
    (id) => ((mask[id >> 5] ?? 0) >>> (id & 31)) & 1,
  )
}

/** Whether a text may be all of an answer. */
export function accepts(keeper: GrammarKeeper, text: string): boolean {
  const sequence = ++sequences
  const { faults, ends } = keeper.answer([{ sequence, tokens: Int32Array.from(tinyTokens(text)) }])
  keeper.forget(sequence)
  return faults.length === 0 && ends[0] === true
}

/** A random text that the keeper allows; undefined where it did not end in time. `random` draws from [0, 1). */
export function randomText(keeper: GrammarKeeper, random: () => number): string | undefined {
  const sequence = ++sequences
  const bytes: number[] = []
  let tokens = new Int32Array()
  for (let length = 0; length < LIMIT; length++) {
    const { bits, ends, faults } = keeper.answer([{ sequence, tokens }])
    const [fault] = faults
    if (fault) throw new Error(`${fault.reason} behind ${Buffer.from(bytes).toString()}`)
    const ids = allowedTokens(bits)
    if (ends[0] && (ids.length === 0 || length > PATIENCE || random() < 0.5)) {
      keeper.forget(sequence)
      return Buffer.from(bytes).toString()
    }
    const token = choose(ids, length, random)
    bytes.push(token - (TINY_VOCAB_SIZE - 256))
    tokens = Int32Array.of(token)
  }
  keeper.forget(sequence)
  return undefined
}

function choose(ids: readonly number[], length: number, random: () => number): number {
  const closing = CLOSING.filter((id) => ids.includes(id))
  const [first] = closing
  if (first !== undefined && length > PATIENCE) return first
  const among = closing.length > 0 && random() < 0.5 ? closing : ids
  return among[Math.floor(random() * among.length)] ?? 0
}
