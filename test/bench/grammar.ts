/**
 * What grammars cost: compiling, the masks of an answer's tokens, and decoding with them beside decoding without, on the
 * embedded model and this machine's CPU.
 */
import { parseArgs } from 'node:util'
import { loadAddon } from '../../engine/addon.js'
import { GrammarKeeper } from '../../engine/grammar/keeper.js'
import { TokenTrie } from '../../engine/grammar/token-trie.js'
import { vocabularies } from '../../engine/grammar/vocabularies.js'
import { vocabularyBytes } from '../../engine/grammar/vocabulary.js'
import { readModelCard } from '../../engine/registry/index.js'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { engineInProcess } from '../support/engine-in-process.js'
import { SMOLLM2_FILE } from '../support/smollm2.js'
import { testDevice } from '../support/test-device.js'

const { values } = parseArgs({ options: { tokens: { type: 'string', default: '64' } } })
const TOKENS = Number(values.tokens)
const BATCHES = [1, 8, 32]

const PERSON = {
  type: 'object',
  properties: {
    name: { type: 'string' },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    tags: { type: 'array', items: { type: 'string', maxLength: 20 } },
    notes: { type: 'array', items: { $ref: '#' } },
  },
  required: ['name', 'age', 'tags', 'notes'],
}
const GRAMMARS: Record<string, Grammar['kind']> = {
  schema: { $case: 'jsonSchema', jsonSchema: JSON.stringify(PERSON) },
  'any JSON object': { $case: 'jsonSchema', jsonSchema: '{"type":"object"}' },
  'regular expression': { $case: 'regex', regex: '([A-Z][a-z]+ [a-z]+, ){200}' },
  'choice of 256': { $case: 'choice', choice: { texts: Array.from({ length: 256 }, (_, i) => `answer number ${i}`) } },
}

const card = readModelCard(SMOLLM2_FILE, (file) => loadAddon().readGguf(file))
const began = performance.now()
const trie = new TokenTrie(vocabularyBytes(vocabularies(new Map([['smollm2', card]]))('smollm2')))
console.log(`vocabulary of ${card.spec.vocabSize} tokens: ${(performance.now() - began).toFixed(0)} ms`)

const path = JSON.stringify(SMOLLM2_FILE)
const { yaml } = testDevice({ cpu: 2, cuda: 4 })
const box = engineInProcess(`
devices: [${yaml}]
models:
  - { id: smollm2, variants: [{ precision: int4, path: ${path} }] }
`)
await box.settled()
const prompt = Array.from({ length: 16 }, (_, i) => 500 + i)

/** Tokens a second of so many answers at once, and the tokens of the first. */
async function decode(batch: number, kind: Grammar['kind'] | undefined): Promise<{ rate: number; first: number[] }> {
  const grammar = kind && { kind }
  const ask = (): Promise<{ tokens: number[] }> => box.ask('smollm2:int4', prompt, { maxTokens: TOKENS, grammar })
  // Loads, and compiles the grammar.
  await ask()
  const startedAt = performance.now()
  const answers = await Promise.all(Array.from({ length: batch }, ask))
  const tokens = answers.reduce((sum, answer) => sum + answer.tokens.length, 0)
  return { rate: (tokens / (performance.now() - startedAt)) * 1000, first: answers[0]?.tokens ?? [] }
}

function quantile(sorted: readonly number[], share: number): string {
  return (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0).toFixed(3)
}

for (const [name, kind] of Object.entries(GRAMMARS)) {
  const { first } = await decode(1, kind)
  const compiledAt = performance.now()
  const keeper = new GrammarKeeper({ kind }, trie)
  const compiled = performance.now() - compiledAt
  const [fresh, again] = [0, 1].map((sequence) => {
    const times = first.map((_, i) => {
      const tokens = Int32Array.from(i === 0 ? [] : first.slice(i - 1, i))
      const startedAt = performance.now()
      keeper.answer([{ sequence, tokens }])
      return performance.now() - startedAt
    })
    return times.toSorted((a, b) => a - b)
  })
  const masks = [fresh, again].map((times = []) => `${quantile(times, 0.5)} / ${quantile(times, 1)}`)
  console.log(
    `${name}: compiled in ${compiled.toFixed(1)} ms; masks, median / longest: new ${masks[0]} ms, known ${masks[1]} ms`,
  )
}

for (const batch of BATCHES) {
  const rates = { without: [] as number[], with: [] as number[] }
  for (let round = 0; round < 3; round++) {
    rates.without.push((await decode(batch, undefined)).rate)
    rates.with.push((await decode(batch, GRAMMARS['regular expression'])).rate)
  }
  const [without = 0, bound = 0] = [rates.without, rates.with].map((all) => all.toSorted((a, b) => a - b)[1] ?? 0)
  const share = ((bound / without) * 100).toFixed(0)
  console.log(
    `${batch} at once: ${without.toFixed(0)} tokens/s without, ${bound.toFixed(0)} with a grammar (${share}%)`,
  )
}
await box.close()
