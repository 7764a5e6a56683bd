/** The tokenizer of a GGUF (`tokenizer.ggml.*`), checked, and as the files of a Hugging Face tokenizer. */
import type { Metadata } from './metadata.js'
import { mergesByScore, sentencePiece, sentencePieceDecoder } from './sentencepiece.js'
import type { ModelAsset } from './model-card.js'
import { knownPreTokenizers, type PreTokenizer, preTokenizerNamed } from './pre-tokenizer.js'

/** `tokenizer.ggml.token_type` values with a meaning here; the others are ordinary tokens. */
const NORMAL = 1
const UNKNOWN = 2
const CONTROL = 3
const USER_DEFINED = 4

/**
 * What ends a turn goes by these names where the metadata does not state its id: many files state an end of text only,
 * which a chat model never writes (Phi-3, derivatives of Gemma). llama.cpp finds them in the same way.
 */
const TURN_ENDS: readonly [key: string, names: readonly string[]][] = [
  ['eot', ['<|eot_id|>', '<|im_end|>', '<|end|>', '<end_of_turn>']],
  ['eom', ['<|eom_id|>']],
]

const MAX_TOKEN_LENGTH = 4096
const MAX_TEMPLATE_LENGTH = 1 << 20

/** A BPE tokenizer as the file describes it. */
export interface GgufTokenizer {
  tokens: readonly string[]
  /** Pairs in the order of their rank, "left right"; empty where `sentencePiece` has them as scores. */
  merges: readonly string[]
  /** Undefined: byte-level. */
  sentencePiece?: SentencePieceVocabulary
  /** Ids that are control tokens, and ids that are ordinary text but never split. */
  control: readonly number[]
  userDefined: readonly number[]
  pre: PreTokenizer
  bosId: number | undefined
  /** Ids that end a turn or a text; the first is the file's EOS. */
  eosIds: readonly number[]
  unknownId: number | undefined
  paddingId: number | undefined
  addBos: boolean
  chatTemplate: string | undefined
}

/** What a SentencePiece vocabulary has instead of merges. */
export interface SentencePieceVocabulary {
  /** By id; better ones merge first. */
  scores: ArrayLike<number>
  /** Ids that take part in merging. */
  normal: readonly number[]
  /** A space goes before every piece of text. */
  spacePrefix: boolean
}

/** Reads and checks the tokenizer of a model with `vocabSize` embeddings. Throws ModelFileError. */
export function readTokenizer(metadata: Metadata, vocabSize: number): GgufTokenizer {
  const model = metadata.requiredText('tokenizer.ggml.model')
  if (model !== 'gpt2' && model !== 'llama')
    throw metadata.unsupported(
      `tokenizer.ggml.model ${JSON.stringify(model.slice(0, 40))} is not supported (gpt2 and llama are: byte-level and SentencePiece BPE)`,
    )
  const byteLevel = model === 'gpt2'
  if (byteLevel && metadata.boolean('tokenizer.ggml.add_space_prefix', false))
    throw metadata.unsupported('tokenizer.ggml.add_space_prefix is not supported with byte-level BPE')
  const tokens = metadata.texts('tokenizer.ggml.tokens')
  if (tokens.length !== vocabSize)
    throw metadata.invalid(`tokenizer.ggml.tokens has ${tokens.length} entries for ${vocabSize} embeddings`)
  const ids = checkTokens(metadata, tokens)
  const merges = byteLevel ? metadata.texts('tokenizer.ggml.merges') : []
  checkMerges(metadata, merges, ids)
  const unstatedEnds = turnEndsByName(metadata, ids)
  const types = withControl(readTypes(metadata, tokens.length), unstatedEnds)
  const special = (name: string) =>
    metadata.has(`tokenizer.ggml.${name}_token_id`)
      ? metadata.integer(`tokenizer.ggml.${name}_token_id`, 0, vocabSize - 1)
      : undefined
  const vocabulary = byteLevel ? undefined : readSentencePiece(metadata, types)
  const pre = vocabulary ? sentencePiece(vocabulary.spacePrefix) : readPre(metadata)
  const bosId = special('bos')
  const addBos = metadata.boolean('tokenizer.ggml.add_bos_token', pre.addBos && bosId !== undefined)
  if (addBos && bosId === undefined)
    throw metadata.invalid('tokenizer.ggml.add_bos_token is set, but there is no bos_token_id')
  return {
    tokens,
    merges,
    ...(vocabulary && { sentencePiece: vocabulary }),
    control: idsOf(types, (type) => type === CONTROL || type === UNKNOWN),
    userDefined: idsOf(types, (type) => type === USER_DEFINED),
    pre,
    bosId,
    eosIds: [...new Set([special('eos'), special('eot'), special('eom'), ...unstatedEnds])].filter(
      (id) => id !== undefined,
    ),
    unknownId: special('unknown'),
    paddingId: special('padding'),
    addBos,
    chatTemplate: readTemplate(metadata),
  }
}

function readSentencePiece(metadata: Metadata, types: ArrayLike<number>): SentencePieceVocabulary {
  const scores = metadata.numbers('tokenizer.ggml.scores')
  if (scores === undefined || scores.length !== types.length)
    throw metadata.invalid(`tokenizer.ggml.scores has ${scores?.length ?? 0} entries for ${types.length} tokens`)
  if (Array.from(scores).some(Number.isNaN)) throw metadata.invalid('tokenizer.ggml.scores holds NaN')
  return {
    scores,
    normal: idsOf(types, (type) => type === NORMAL),
    spacePrefix: metadata.boolean('tokenizer.ggml.add_space_prefix', true),
  }
}

function readPre(metadata: Metadata): PreTokenizer {
  const name = metadata.requiredText('tokenizer.ggml.pre')
  const pre = preTokenizerNamed(name)
  if (pre === undefined)
    throw metadata.unsupported(
      `tokenizer.ggml.pre ${JSON.stringify(name.slice(0, 40))} is not known (${knownPreTokenizers().join(', ')} are)`,
    )
  return pre
}

function readTemplate(metadata: Metadata): string | undefined {
  const template = metadata.text('tokenizer.chat_template')
  if (template !== undefined && template.length > MAX_TEMPLATE_LENGTH)
    throw metadata.invalid(
      `tokenizer.chat_template has ${template.length} characters, more than ${MAX_TEMPLATE_LENGTH}`,
    )
  return template
}

function readTypes(metadata: Metadata, count: number): ArrayLike<number> {
  const types = metadata.numbers('tokenizer.ggml.token_type') ?? new Int32Array(count).fill(1)
  if (types.length !== count)
    throw metadata.invalid(`tokenizer.ggml.token_type has ${types.length} entries for ${count} tokens`)
  return types
}

function turnEndsByName(metadata: Metadata, ids: ReadonlyMap<string, number>): number[] {
  const unstated = TURN_ENDS.filter(([key]) => !metadata.has(`tokenizer.ggml.${key}_token_id`))
  return unstated.flatMap(([, names]) => names.flatMap((name) => ids.get(name) ?? []))
}

function withControl(types: ArrayLike<number>, ids: readonly number[]): ArrayLike<number> {
  return ids.length === 0 ? types : Array.from(types, (type, id) => (ids.includes(id) ? CONTROL : type))
}

function idsOf(types: ArrayLike<number>, wanted: (type: number) => boolean): number[] {
  const ids: number[] = []
  for (let id = 0; id < types.length; id++) if (wanted(types[id] ?? 0)) ids.push(id)
  return ids
}

function checkTokens(metadata: Metadata, tokens: readonly string[]): ReadonlyMap<string, number> {
  const ids = new Map<string, number>()
  for (const [id, token] of tokens.entries()) {
    if (token.length === 0 || token.length > MAX_TOKEN_LENGTH)
      throw metadata.invalid(`token ${id} has ${token.length} characters`)
    if (ids.has(token)) throw metadata.invalid(`token ${id} (${JSON.stringify(token.slice(0, 40))}) occurs twice`)
    ids.set(token, id)
  }
  return ids
}

function checkMerges(metadata: Metadata, merges: readonly string[], ids: ReadonlyMap<string, number>): void {
  for (const [index, merge] of merges.entries()) {
    const [left, right, more] = merge.split(' ')
    const known = left && right && more === undefined && ids.has(left) && ids.has(right) && ids.has(left + right)
    if (!known)
      throw metadata.invalid(
        `merge ${index} (${JSON.stringify(merge.slice(0, 40))}) is not a pair of tokens that make a token`,
      )
  }
}

/** The tokenizer as the files of a Hugging Face checkpoint. */
export function ggufText(tokenizer: GgufTokenizer, contextLength: number): ModelAsset[] {
  const { chatTemplate } = tokenizer
  return [
    json('tokenizer.json', tokenizerJson(tokenizer)),
    json('tokenizer_config.json', tokenizerConfig(tokenizer, contextLength)),
    json('generation_config.json', generationConfig(tokenizer)),
    ...(chatTemplate === undefined ? [] : [{ name: 'chat_template.jinja', data: Buffer.from(chatTemplate) }]),
  ]
}

function json(name: string, value: object): ModelAsset {
  return { name, data: Buffer.from(JSON.stringify(value)) }
}

const BYTE_LEVEL_DECODER = { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true }

function mergesOf({ tokens, merges, sentencePiece: vocabulary }: GgufTokenizer): readonly string[] {
  if (vocabulary === undefined) return merges
  return mergesByScore(new Map(vocabulary.normal.map((id) => [tokens[id] ?? '', id])), vocabulary.scores)
}

/** tokenizer.json: what the `tokenizers` library reads. */
function tokenizerJson(tokenizer: GgufTokenizer): object {
  const { sentencePiece: vocabulary } = tokenizer
  const added = (special: boolean) => (id: number) => ({
    id,
    content: tokenizer.tokens[id],
    single_word: false,
    lstrip: false,
    rstrip: false,
    // Gemma defines runs of escaped spaces by hand: they are found after spaces are escaped. Where a space goes before
    // every piece, normalizing would put one into the token itself.
    normalized: vocabulary?.spacePrefix === false && !special,
    special,
  })
  const addedTokens = [...tokenizer.control.map(added(true)), ...tokenizer.userDefined.map(added(false))]
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens.toSorted((a, b) => a.id - b.id),
    normalizer: tokenizer.pre.normalizer,
    pre_tokenizer: tokenizer.pre.preTokenizer,
    post_processor: null,
    decoder: vocabulary ? sentencePieceDecoder(vocabulary.spacePrefix) : BYTE_LEVEL_DECODER,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: vocabulary && tokenizer.unknownId !== undefined ? tokenizer.tokens[tokenizer.unknownId] : null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: vocabulary !== undefined,
      byte_fallback: vocabulary !== undefined,
      ignore_merges: tokenizer.pre.ignoreMerges,
      vocab: Object.fromEntries(tokenizer.tokens.map((token, id) => [token, id])),
      merges: mergesOf(tokenizer).map((merge) => merge.split(' ')),
    },
  }
}

/** tokenizer_config.json: special tokens by their text. */
function tokenizerConfig(tokenizer: GgufTokenizer, contextLength: number): object {
  const text = (id: number | undefined) => (id === undefined ? undefined : tokenizer.tokens[id])
  return {
    bos_token: text(tokenizer.bosId),
    eos_token: text(tokenizer.eosIds[0]),
    unk_token: text(tokenizer.unknownId),
    pad_token: text(tokenizer.paddingId),
    add_bos_token: tokenizer.addBos,
    model_max_length: contextLength,
  }
}

/** generation_config.json: special tokens by their id. */
function generationConfig(tokenizer: GgufTokenizer): object {
  return { bos_token_id: tokenizer.bosId, eos_token_id: tokenizer.eosIds, pad_token_id: tokenizer.paddingId }
}
