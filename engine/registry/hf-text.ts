/** The text files of a Hugging Face checkpoint, in the form that the gateway reads. */
import { join } from 'node:path'
import { z } from 'zod'
import { checkShape, parseJsonObject, readJsonObject, readSmallFile } from './json-file.js'
import { invalidFile, quote, unsupported } from './model-file-error.js'
import type { ModelAsset } from './model-card.js'
import type { RawConfig } from './hf-config.js'

const MAX_TOKENIZER_BYTES = 128 * 2 ** 20
const MAX_CONFIG_BYTES = 8 * 2 ** 20
const MAX_TEMPLATE_BYTES = 2 ** 20

const id = z
  .int()
  .min(0)
  .max(2 ** 31)
const addedToken = z.looseObject({ id, content: z.string() })
const tokenizerSchema = z.looseObject({
  added_tokens: z
    .array(addedToken)
    .max(1 << 20)
    .default([]),
  model: z.looseObject({ type: z.string().nullish(), vocab: z.record(z.string(), id) }),
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
  const tokenizer = checkShape(tokenizerSchema, parseJsonObject(file, data), file)
  const ids = tokenIds(file, tokenizer, config.vocab_size)
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
    { name: 'tokenizer.json', data },
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

function readConfig<T>(file: string, schema: z.ZodType<T>): T {
  return checkShape(schema, readJsonObject(file, MAX_CONFIG_BYTES) ?? {}, file)
}

function tokenIds(file: string, tokenizer: z.infer<typeof tokenizerSchema>, vocabSize: number): Map<string, number> {
  const { model, added_tokens: added } = tokenizer
  if (model.type !== 'BPE') throw unsupported(file, `model.type ${quote(model.type)} is not supported (BPE is)`)
  const ids = new Map(Object.entries(model.vocab))
  for (const token of added) ids.set(token.content, token.id)
  for (const [token, place] of ids) {
    if (place >= vocabSize) throw invalidFile(file, `token ${quote(token)} has id ${place} of ${vocabSize} embeddings`)
  }
  return ids
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
