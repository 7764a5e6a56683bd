/** The text files of a Hugging Face checkpoint, in the form that the gateway reads. */
import { join } from 'node:path'
import { z } from 'zod'
import { checkShape, parseJsonObject, readJsonObject, readSmallFile } from './json-file.js'
import { invalidFile, quote, unsupported } from './model-file-error.js'
import type { ModelAsset } from './model-card.js'
import type { RawConfig } from './raw-config.js'

const MAX_TOKENIZER_BYTES = 128 * 2 ** 20
const MAX_CONFIG_BYTES = 8 * 2 ** 20
const MAX_TEMPLATE_BYTES = 2 ** 20

const id = z
  .int()
  .min(0)
  .max(2 ** 31)
/** Ids by token. A record of zod's would leave out a token named __proto__. */
const vocabulary = z.custom<Readonly<Record<string, number>>>(isVocabulary, 'not ids by token')
const addedToken = z.looseObject({ id, content: z.string() })
const kindSchema = z.looseObject({ model: z.looseObject({ type: z.string().nullish() }) })
const tokenizerSchema = z.looseObject({
  added_tokens: z
    .array(addedToken)
    .max(1 << 20)
    .default([]),
  model: z.looseObject({ vocab: vocabulary }),
  post_processor: z.looseObject({}).nullish(),
})

const text = z.union([z.string(), z.looseObject({ content: z.string() }).transform(({ content }) => content)]).nullish()
const templates = z.union([z.string(), z.array(z.looseObject({ name: z.string(), template: z.string() }))])
const tokenizerConfigSchema = z.looseObject({
  bos_token: text,
  eos_token: text,
  unk_token: text,
  pad_token: text,
  add_bos_token: z.boolean().nullish(),
  chat_template: templates.nullish(),
})

const generationSchema = z.looseObject({
  bos_token_id: id.nullish(),
  eos_token_id: z.union([id, z.array(id).max(64)]).nullish(),
})

/**
 * tokenizer.json as it is; tokenizer_config.json, generation_config.json and chat_template.jinja in one spelling, from
 * wherever the folder has them. Throws ModelFileError for what is missing or not of the model's vocabulary.
 */
export function readHfText(folder: string, config: RawConfig, contextLength: number): ModelAsset[] {
  const file = join(folder, 'tokenizer.json')
  const data = readSmallFile(file, MAX_TOKENIZER_BYTES)
  if (data === undefined)
    throw unsupported(folder, 'there is no tokenizer.json (other tokenizer files are not supported)')
  const parsed = parseJsonObject(file, data)
  const { type } = checkShape(kindSchema, parsed, file).model
  if (type !== 'BPE') throw unsupported(file, `model.type ${quote(type)} is not supported (BPE is)`)
  const tokenizer = checkShape(tokenizerSchema, parsed, file)
  const { ids, beyond } = tokenIds(file, tokenizer, config.vocab_size)
  const named = readConfig(join(folder, 'tokenizer_config.json'), tokenizerConfigSchema)
  const generation = readConfig(join(folder, 'generation_config.json'), generationSchema)
  const idOf = (token: string | null | undefined) => (token == null ? undefined : ids.get(token))
  const endings = [generation.eos_token_id ?? config.eos_token_id ?? [], idOf(named.eos_token) ?? []].flat()
  const bosId = generation.bos_token_id ?? config.bos_token_id ?? idOf(named.bos_token)
  for (const token of [...endings, bosId ?? 0]) {
    if (token >= config.vocab_size) throw invalidFile(folder, `token ${token} is outside the vocabulary`)
  }
  const template = readTemplate(folder, named.chat_template)
  return [
    { name: 'tokenizer.json', data: beyond ? withoutTokensFrom(tokenizer, config.vocab_size) : data },
    json('tokenizer_config.json', {
      bos_token: named.bos_token,
      eos_token: named.eos_token,
      unk_token: named.unk_token,
      pad_token: named.pad_token,
      add_bos_token: named.bos_token != null && (named.add_bos_token ?? startsWith(tokenizer, named.bos_token)),
      model_max_length: contextLength,
    }),
    json('generation_config.json', { bos_token_id: bosId, eos_token_id: [...new Set(endings)] }),
    ...(template === undefined ? [] : [{ name: 'chat_template.jinja', data: Buffer.from(template) }]),
  ]
}

function isVocabulary(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  return Object.values(value).every((each) => id.safeParse(each).success)
}

function readConfig<T>(file: string, schema: z.ZodType<T>): T {
  return checkShape(schema, readJsonObject(file, MAX_CONFIG_BYTES) ?? {}, file)
}

/** Ids by token. `beyond`: there are added tokens without an embedding, as Gemma 3's text models have for images. */
function tokenIds(
  file: string,
  tokenizer: z.infer<typeof tokenizerSchema>,
  vocabSize: number,
): { ids: Map<string, number>; beyond: boolean } {
  const { model, added_tokens: added } = tokenizer
  const beyond = added.filter((token) => token.id >= vocabSize)
  const named = new Set(beyond.map(({ content }) => content))
  const ids = new Map(Object.entries(model.vocab))
  for (const [token, place] of ids) {
    if (place >= vocabSize && !named.has(token))
      throw invalidFile(file, `token ${quote(token)} has id ${place} of ${vocabSize} embeddings`)
  }
  for (const token of added) ids.set(token.content, token.id)
  for (const token of named) ids.delete(token)
  return { ids, beyond: beyond.length > 0 }
}

function withoutTokensFrom(tokenizer: z.infer<typeof tokenizerSchema>, vocabSize: number): Buffer {
  const inside = Object.entries(tokenizer.model.vocab).filter(([, place]) => place < vocabSize)
  return Buffer.from(
    JSON.stringify({
      ...tokenizer,
      added_tokens: tokenizer.added_tokens.filter((token) => token.id < vocabSize),
      model: { ...tokenizer.model, vocab: Object.fromEntries(inside) },
    }),
  )
}

/** Whether the tokenizer puts this token before a text (a TemplateProcessing step, as in Llama 3). */
function startsWith({ post_processor: step }: z.infer<typeof tokenizerSchema>, token: string): boolean {
  const special = z.looseObject({ SpecialToken: z.looseObject({ id: z.string() }) })
  const template = z.looseObject({ type: z.literal('TemplateProcessing'), single: z.array(z.unknown()) })
  const steps = z.looseObject({ processors: z.array(z.unknown()) }).safeParse(step).data?.processors ?? [step]
  return steps.some((part) => {
    const [first] = template.safeParse(part).data?.single ?? []
    return special.safeParse(first).data?.SpecialToken.id === token
  })
}

/** The file of its own goes before the one inside tokenizer_config.json; of several the default one is meant. */
function readTemplate(folder: string, inside: z.infer<typeof templates> | null | undefined): string | undefined {
  const file = join(folder, 'chat_template.jinja')
  const own = readSmallFile(file, MAX_TEMPLATE_BYTES)
  if (own) return decode(file, own)
  const template = typeof inside === 'string' ? inside : inside?.find(({ name }) => name === 'default')?.template
  if (template !== undefined && template.length > MAX_TEMPLATE_BYTES)
    throw invalidFile(folder, `the chat template has ${template.length} characters, more than ${MAX_TEMPLATE_BYTES}`)
  return template
}

function decode(file: string, bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw invalidFile(file, 'is not UTF-8 text')
  }
}

function json(name: string, value: object): ModelAsset {
  return { name, data: Buffer.from(JSON.stringify(value)) }
}
