/**
 * The request bodies of the OpenAI-compatible API, shared by HTTP and WebSocket. The schemas hold shape and ranges;
 * bounds that the configuration sets are applied in decode.ts. Objects are compiled once, at import.
 */
import { z } from 'zod'
import { grammarFields } from './grammar-fields.js'
import { needFields } from './needs.js'

/** Messages of one chat; a bound on work before the template sees them. */
const MAX_MESSAGES = 2048
const MAX_PARTS = 1024

/**
 * An array that stops at its first bad element, so that a hostile body cannot make one issue per element; `inner` is
 * also its documentation.
 */
function list<T>(inner: z.ZodType<T>, min: number, max: number, expected = 'expected an array') {
  return z
    .custom<T[]>()
    .superRefine((value: unknown, context) => {
      if (!Array.isArray(value)) {
        const message = value === undefined ? 'received undefined' : expected
        context.addIssue({ code: 'invalid_type', expected: 'array', input: value, message })
        return
      }
      if (value.length < min || value.length > max) {
        const bound = value.length < min ? `at least ${min}` : `at most ${max}`
        context.addIssue({ code: 'custom', message: `expected ${bound} elements, received ${value.length}` })
        return
      }
      for (const [index, element] of value.entries()) {
        const result = inner.safeParse(element)
        if (result.success) continue
        const issue = result.error.issues[0]
        if (issue) context.addIssue({ ...issue, path: [index, ...issue.path] })
        return
      }
    })
    .meta({ type: 'array', items: withoutDialect(inner), minItems: min, maxItems: max })
}

function withoutDialect(schema: z.ZodType): Record<string, unknown> {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { unrepresentable: 'any' })
  return rest
}

const tokenId = { type: 'integer', minimum: 0 } as const

/** Kept for its place in the API; carries an opaque mark of the client's, which serving does not depend on. */
const opaque = z.string().max(512).optional()

const metadata = z
  .custom<Record<string, string>>(isMetadata, 'expected at most 16 string values')
  .meta({ type: 'object', additionalProperties: { type: 'string' }, maxProperties: 16 })
  .optional()

function isMetadata(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  const values = Object.values(value)
  return values.length <= 16 && values.every((entry) => typeof entry === 'string')
}

const textPart = z.strictObject({ type: z.literal('text'), text: z.string() })

/** Fields of a chat message. `developer` is the system role under its newer name. */
export const messageSchema = z.strictObject({
  role: z.enum(['system', 'developer', 'user', 'assistant', 'tool']),
  content: z
    .union([z.string(), list(textPart, 1, MAX_PARTS, 'expected a string or an array of text parts')])
    .describe('Text, or text parts joined by newlines.'),
  name: z.string().max(128).optional(),
  tool_call_id: z.string().max(128).optional(),
})

/** Fields that chat and completion requests share. */
const shared = {
  model: z.string().min(1).max(256).describe('A model id, "id:rung", a tag, or "auto": the router chooses the model.'),
  temperature: z.number().min(0).max(2).optional().describe('0 = greedy. Default 1.'),
  top_p: z.number().min(0).max(1).optional().describe('Default 1 (off).'),
  top_k: z.int().min(-1).max(1_000_000).optional().describe('0 or -1 = off (default).'),
  min_p: z.number().min(0).max(1).optional().describe('Default 0 (off).'),
  repetition_penalty: z.number().min(0.01).max(10).optional().describe('Default 1 (off).'),
  presence_penalty: z.number().min(-2).max(2).optional().describe('Default 0.'),
  frequency_penalty: z.number().min(-2).max(2).optional().describe('Default 0.'),
  min_tokens: z.int().min(0).max(1_000_000).optional().describe('No end before that many tokens. Default 0.'),
  ignore_eos: z.boolean().optional().describe('Go on past the end-of-text token. Default false.'),
  stop: z
    .unknown()
    .optional()
    .meta({
      description: 'Strings that end a choice; they are not part of it.',
      anyOf: [
        { type: 'string', minLength: 1 },
        { type: 'array', items: { type: 'string', minLength: 1 } },
      ],
    }),
  stop_token_ids: z.unknown().optional().meta({ type: 'array', items: tokenId }),
  seed: z.int().optional().describe('Choice i samples with seed + i; drawn by the gateway when absent.'),
  logit_bias: z
    .unknown()
    .optional()
    .meta({
      description: 'Token id -> bias.',
      type: 'object',
      additionalProperties: { type: 'number', minimum: -100, maximum: 100 },
    }),
  n: z.int().min(1).optional().describe('Choices per prompt. Default 1.'),
  stream: z.boolean().optional(),
  stream_options: z
    .strictObject({ include_usage: z.boolean().nullish(), include_obfuscation: z.literal(false).nullish() })
    .optional(),
  resumable: z
    .boolean()
    .optional()
    .describe('The stream can be resumed by its id after a lost connection. Default false.'),
  return_token_ids: z.boolean().optional().describe('Choices also carry token_ids. Default false.'),
  priority: z
    .int32()
    .optional()
    .describe('Lower is served first; above 0 is batch work. Default: 0 for streams, 10 for whole answers.'),
  ...grammarFields,
  ...needFields,
  user: opaque,
  safety_identifier: opaque,
  prompt_cache_key: opaque,
  metadata,
}

/** POST /v1/chat/completions, and a WebSocket chat. */
export const chatBodySchema = z.strictObject({
  ...shared,
  messages: list(messageSchema, 1, MAX_MESSAGES),
  max_tokens: z.int().min(1).optional().describe('Default: as much as the context allows.'),
  max_completion_tokens: z.int().min(1).optional().describe('The newer name of max_tokens.'),
  logprobs: z.boolean().optional(),
  top_logprobs: z.int().min(0).optional().describe('Alternatives per token; needs logprobs: true.'),
})

/** POST /v1/completions. */
export const completionBodySchema = z.strictObject({
  ...shared,
  prompt: z.unknown().meta({
    description: 'Text, token ids, or an array of either: prompt p, choice i has index p * n + i.',
    anyOf: [
      { type: 'string', minLength: 1 },
      { type: 'array', minItems: 1, items: { type: 'string', minLength: 1 } },
      { type: 'array', minItems: 1, items: tokenId },
      { type: 'array', minItems: 1, items: { type: 'array', minItems: 1, items: tokenId } },
    ],
  }),
  max_tokens: z.int().min(0).optional().describe('Default 16; 0 only with echo.'),
  echo: z.boolean().optional().describe('The prompt is part of the answer. Default false.'),
  logprobs: z.int().min(0).optional().describe('Alternatives per token.'),
})

/** POST /tokenize. */
export const tokenizeBodySchema = z.strictObject({
  model: shared.model,
  prompt: z.string(),
  parse_special: z.boolean().optional().describe('Special tokens in the text become their ids. Default false.'),
})

/** POST /detokenize. */
export const detokenizeBodySchema = z.strictObject({
  model: shared.model,
  tokens: z.unknown().meta({ type: 'array', items: tokenId }),
})

/** What chat and completion bodies have in common once parsed. */
export type SharedBody = z.infer<z.ZodObject<typeof shared>>
/** A parsed chat body. */
export type ChatBody = z.infer<typeof chatBodySchema>
/** A parsed completion body. */
export type CompletionBody = z.infer<typeof completionBodySchema>
