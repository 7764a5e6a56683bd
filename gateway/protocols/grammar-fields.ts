/** The fields by which a body asks for an answer that follows a grammar, with their shapes; grammar.ts reads them. */
import { z } from 'zod'

/** Most characters of a schema (as JSON text), of a regular expression, of rules, and of all choices together. */
export const MAX_GRAMMAR_CHARACTERS = 65_536
/** Most texts to choose from. */
export const MAX_CHOICES = 256

const text = z.string().min(1).max(MAX_GRAMMAR_CHARACTERS)

const SCHEMA = [{ type: 'object' }, { type: 'boolean' }] as const
const TEXT = { type: 'string', maxLength: MAX_GRAMMAR_CHARACTERS } as const

/** What constrains an answer, by the names that vLLM gives it. */
const constraints = {
  json: z
    .unknown()
    .optional()
    .meta({ description: 'The answer is JSON that follows this JSON Schema, or its text.', anyOf: [...SCHEMA, TEXT] }),
  regex: text.nullish().describe('The answer as a whole matches this regular expression.'),
  choice: z
    .unknown()
    .optional()
    .meta({
      description: `The answer is one of these texts; at most ${MAX_GRAMMAR_CHARACTERS} characters together.`,
      type: 'array',
      items: { type: 'string', minLength: 1 },
      minItems: 1,
      maxItems: MAX_CHOICES,
    }),
  grammar: text.nullish().describe('The answer is what the rule `root` of this EBNF (GBNF) stands for.'),
}

const FORMATS = 'expected text, json_object or json_schema'

const namedSchema = z.strictObject({
  name: z.string().min(1).max(256).describe('Has no effect.'),
  description: z.string().nullish().describe('Has no effect.'),
  schema: z.unknown().meta({ description: 'The JSON Schema.', anyOf: [...SCHEMA] }),
  strict: z.boolean().nullish().describe('The answer follows the schema either way.'),
})

const responseFormat = z.discriminatedUnion(
  'type',
  [
    z.strictObject({ type: z.literal('text') }).describe('Any text.'),
    z.strictObject({ type: z.literal('json_object') }).describe('A JSON object.'),
    z
      .strictObject({ type: z.literal('json_schema'), json_schema: namedSchema })
      .describe('JSON that follows a JSON Schema.'),
  ],
  { error: ({ code }) => (code === 'invalid_union' ? FORMATS : undefined) },
)

/** Fields of chat and completion bodies; a request has at most one that asks for a grammar. */
export const grammarFields = {
  response_format: responseFormat.optional().describe('What the answer has to be. Default: any text.'),
  structured_outputs: z
    .strictObject({ ...constraints, json_object: z.literal(true).nullish().describe('The answer is a JSON object.') })
    .optional()
    .describe('What the answer has to be: exactly one of these.'),
  guided_json: constraints.json,
  guided_regex: constraints.regex,
  guided_choice: constraints.choice,
  guided_grammar: constraints.grammar,
}
