import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { parseEbnf } from './ebnf.js'
import { choice, type GrammarRules, literal } from './expression.js'
import { GrammarError } from './grammar-error.js'
import { schemaRules } from './json-schema.js'
import { patternExpression } from './pattern.js'

/** Longest grammar, UTF-16 units; the gateway refuses shorter ones with the field's name. */
const MAX_LENGTH = 2 ** 20

/** The rules of a request's grammar. Throws GrammarError for one that is none, or that is not kept. */
export function grammarRules({ kind }: Grammar): GrammarRules {
  switch (kind?.$case) {
    case 'jsonSchema':
      return schemaRules(parseJson(checked(kind.jsonSchema)))
    case 'regex':
      return new Map([['root', patternExpression(checked(kind.regex))]])
    case 'ebnf':
      return parseEbnf(checked(kind.ebnf))
    case 'choice':
      return new Map([['root', alternatives(kind.choice.texts)]])
    default:
      throw new GrammarError('the grammar is of no known kind')
  }
}

function checked(text: string): string {
  if (text === '') throw new GrammarError('the grammar is empty')
  if (text.length > MAX_LENGTH) throw new GrammarError(`the grammar has more than ${MAX_LENGTH} characters`)
  return text
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new GrammarError(`the schema is not JSON: ${error instanceof Error ? error.message : String(error)}`)
  }
}

function alternatives(texts: readonly string[]): ReturnType<typeof literal> {
  if (texts.length === 0) throw new GrammarError('there is nothing to choose from')
  return choice(...texts.map(literal))
}
