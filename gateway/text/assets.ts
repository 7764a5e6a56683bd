/** Reads a model's text files (Hugging Face conventions). They come from an engine, so they are checked like input. */
import { z } from 'zod'
import type { ModelAsset } from './types.js'

const id = z.int().min(0)
const fallbackStep = z.looseObject({ type: z.literal('ByteFallback') })
const addedToken = z.object({
  id,
  content: z.string().min(1),
  special: z.boolean(),
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
})

/** Ids by token. A record of zod's would leave out a token named __proto__. */
const vocabulary = z.custom<Readonly<Record<string, number>>>(isVocabulary, 'not ids by token')

function isVocabulary(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  return Object.values(value).every((each) => id.safeParse(each).success)
}

const byteLevel = z.looseObject({ type: z.literal('ByteLevel') })
const byteFallback = z.looseObject({
  type: z.literal('Sequence'),
  decoders: z.array(z.unknown()).refine((steps) => steps.some((step) => fallbackStep.safeParse(step).success)),
})

const tokenizerSchema = z.looseObject({
  added_tokens: z.array(addedToken.loose()),
  model: z.looseObject({
    type: z.literal('BPE'),
    vocab: vocabulary,
    merges: z.array(z.union([z.string(), z.tuple([z.string(), z.string()])])),
  }),
  pre_tokenizer: z.unknown(),
  decoder: z.union([byteLevel, byteFallback], {
    error: 'neither a ByteLevel decoder nor a sequence with ByteFallback',
  }),
})

const tokenizerConfigSchema = z.looseObject({
  bos_token: z.string().nullish(),
  eos_token: z.string().nullish(),
  unk_token: z.string().nullish(),
  pad_token: z.string().nullish(),
  add_bos_token: z.boolean().default(false),
  model_max_length: z.number().min(1),
})

const generationSchema = z.looseObject({
  eos_token_id: z.union([id, z.array(id)]).nullish(),
})

/** tokenizer.json: a byte-level BPE, or one with tokens for single bytes (SentencePiece). */
export type TokenizerFile = z.infer<typeof tokenizerSchema>

/** tokenizer_config.json. */
export type TokenizerConfig = z.infer<typeof tokenizerConfigSchema>

/** A model's text files, parsed. */
export interface TextAssets {
  tokenizer: TokenizerFile
  config: TokenizerConfig
  eosTokenIds: number[]
  /** Undefined: the model has none. */
  chatTemplate: string | undefined
}

/** Throws Error naming the file and the reason. */
export function parseAssets(assets: readonly ModelAsset[]): TextAssets {
  const generation = parse(assets, 'generation_config.json', generationSchema)
  return {
    tokenizer: parse(assets, 'tokenizer.json', tokenizerSchema),
    config: parse(assets, 'tokenizer_config.json', tokenizerConfigSchema),
    eosTokenIds: [generation.eos_token_id ?? []].flat(),
    chatTemplate: textOf(assets, 'chat_template.jinja'),
  }
}

function textOf(assets: readonly ModelAsset[], name: string): string | undefined {
  const data = assets.find((asset) => asset.name === name)?.data
  return data && new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data)
}

function parse<T>(assets: readonly ModelAsset[], name: string, schema: z.ZodType<T>): T {
  const text = textOf(assets, name)
  if (text === undefined) throw new Error(`${name} is missing`)
  const result = schema.safeParse(JSON.parse(text))
  if (result.success) return result.data
  const issue = result.error.issues[0]
  throw new Error(`${name}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'invalid'}`)
}
