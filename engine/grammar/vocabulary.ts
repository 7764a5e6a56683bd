import { byteLevelBytes, sentencePieceBytes } from '../text/token-bytes.js'

/** What a grammar has to know of a model's tokens; a model has one of them, told apart by identity. */
export interface GrammarVocabulary {
  /** A tokenizer.json that was checked when the model's card was read. */
  readonly tokenizer: Uint8Array
  /** Tokens that the model gives logits of. */
  readonly vocabSize: number
}

/** The part of a tokenizer.json that says what tokens are. */
interface TokenizerJson {
  model: { vocab: Record<string, number> }
  added_tokens: { id: number; content: string; special: boolean }[]
  decoder: { type: string }
}

/** The bytes of every token by its id; undefined for control tokens, which no grammar can spell. */
export function vocabularyBytes({ tokenizer, vocabSize }: GrammarVocabulary): (Uint8Array | undefined)[] {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- checked before (registry/hf-text.ts) or our own (registry/tokenizer.ts)
  const { model, added_tokens: added, decoder } = JSON.parse(new TextDecoder().decode(tokenizer)) as TokenizerJson
  const bytesOf = decoder.type === 'ByteLevel' ? byteLevelBytes : sentencePieceBytes
  const all = Array.from({ length: vocabSize }, (): Uint8Array | undefined => undefined)
  for (const [name, id] of Object.entries(model.vocab)) all[id] = bytesOf(name)
  for (const { id, content, special } of added) all[id] = special ? undefined : Buffer.from(content)
  return all
}
