import { modelAssets, type ModelCard } from '../registry/index.js'
import type { GrammarVocabulary } from './vocabulary.js'

/** The vocabulary of each model that is served, made when it is first asked for; throws where it has none. */
export function vocabularies(cards: ReadonlyMap<string, ModelCard>): (model: string) => GrammarVocabulary {
  const made = new WeakMap<ModelCard, GrammarVocabulary>()
  return (model) => {
    const card = cards.get(model)
    if (!card) throw new Error(`${model} is not served`)
    const known = made.get(card)
    if (known) return known
    const tokenizer = modelAssets(card).find(({ name }) => name === 'tokenizer.json')
    if (!tokenizer) throw new Error(`${model} has no tokenizer`)
    const vocabulary = { tokenizer: tokenizer.data, vocabSize: card.spec.vocabSize }
    made.set(card, vocabulary)
    return vocabulary
  }
}
