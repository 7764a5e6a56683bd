import { GatewayError } from '../errors.js'
import type { ChatMessage } from '../request.js'
import { parseAssets, type TextAssets, type TokenizerConfig } from './assets.js'
import { BoundedTemplate } from './bounded-template.js'
import { BpeEncoder } from './bpe.js'
import { decodeIds, StreamDetokenizer } from './detokenizer.js'
import { EncodingCache } from './encoding-cache.js'
import { StreamOutput } from './output.js'
import { prefixesTextStart, stripsLeadingSpace, withoutStartPrefix, withStartSpace } from './sentencepiece.js'
import { type Segment, SpecialTokens, unusedMark } from './special-tokens.js'
import { TemplateRenderer } from './template-renderer.js'
import { TokenTable } from './token-table.js'
import type { Detokenizer, ModelAsset, OutputOptions, OutputText, TextModel } from './types.js'

const RENDER_TIMEOUT_MS = 1000
const MAX_WAITING_RENDERS = 256

/** Chats that show which texts a template always adds. */
const SAMPLE = '\u{F0000}'
const SAMPLES: readonly (readonly ChatMessage[])[] = [
  [{ role: 'user', content: SAMPLE }],
  [
    { role: 'system', content: SAMPLE },
    { role: 'user', content: SAMPLE },
    { role: 'assistant', content: SAMPLE },
    { role: 'user', content: SAMPLE },
  ],
]

/**
 * Builds a model's text side from its files. Texts longer than any of `maxTokens` tokens are refused unread; 0 takes
 * the tokenizer's own limit. Rejects when a file is missing or broken, or the chat template does not compile.
 */
export async function loadTextModel(assets: readonly ModelAsset[], maxTokens: number): Promise<TextModel> {
  const parsed = parseAssets(assets)
  const model = new BpeTextModel(parsed, maxTokens > 0 ? maxTokens : parsed.config.model_max_length)
  await model.warmUp()
  return model
}

class BpeTextModel implements TextModel {
  readonly vocabSize: number
  readonly eosTokenIds: readonly number[]
  readonly #table: TokenTable
  readonly #encoder: BpeEncoder
  readonly #special: SpecialTokens
  readonly #renderer: TemplateRenderer | undefined
  /** Renders most chats without leaving the event loop; undefined where the template allows no bound. */
  readonly #bounded: BoundedTemplate | undefined
  /** Texts of the template itself, encoded: never of a message, whose reuse another client could time. */
  readonly #constant = new Map<string, readonly number[]>()
  /** Conversations and the texts in them, which clients send again with every turn. */
  readonly #cache = new EncodingCache()
  readonly #bosId: number | undefined
  /** A space goes before a text's start, and not before its pieces after special tokens. */
  readonly #startSpace: boolean
  readonly #stripsSpace: boolean
  readonly #maxTokens: number
  readonly #maxLength: number

  constructor({ tokenizer, config, eosTokenIds, chatTemplate }: TextAssets, maxTokens: number) {
    const special = tokenizer.added_tokens.filter((token) => token.special)
    this.#table = new TokenTable(tokenizer)
    this.#startSpace = prefixesTextStart(tokenizer)
    this.#stripsSpace = stripsLeadingSpace(tokenizer)
    this.#encoder = new BpeEncoder(this.#startSpace ? withoutStartPrefix(tokenizer) : tokenizer)
    this.#special = new SpecialTokens(special)
    this.#maxTokens = maxTokens
    this.#maxLength = maxTokens * this.#table.longest
    this.#bosId = config.add_bos_token ? special.find((token) => token.content === config.bos_token)?.id : undefined
    this.vocabSize = this.#table.size
    this.eosTokenIds = eosTokenIds
    if (chatTemplate === undefined) return
    const limits = { timeoutMs: RENDER_TIMEOUT_MS, maxLength: this.#maxLength, maxWaiting: MAX_WAITING_RENDERS }
    this.#renderer = new TemplateRenderer(chatTemplate, templateConstants(config), limits)
    this.#bounded = BoundedTemplate.from(chatTemplate, templateConstants(config), this.#maxLength)
  }

  get hasChatTemplate(): boolean {
    return this.#renderer !== undefined
  }

  /** Starts the template's process where it is needed; rejects when the template does not compile. */
  async warmUp(): Promise<void> {
    if (this.#renderer === undefined) return
    if (this.#bounded === undefined) await this.#renderer.compile()
    await Promise.all(SAMPLES.map((messages) => this.#learn(messages)))
  }

  /** Encodes the texts that a template puts between any messages. What it raises of this chat is no fault. */
  async #learn(messages: readonly ChatMessage[]): Promise<void> {
    const text = await this.renderChat(messages).catch(() => '')
    const parts = this.#special.split(text).filter((part) => typeof part === 'string' && !part.includes(SAMPLE))
    for (const part of parts) if (typeof part === 'string') await this.#keep(part)
  }

  async #keep(text: string): Promise<void> {
    const [ids] = await this.#encoder.encode([text])
    if (ids) this.#constant.set(text, ids)
  }

  async encode(text: string, parseSpecial: boolean): Promise<number[]> {
    this.#checkLength(text.length)
    return this.#encodeSegments(parseSpecial ? this.#special.split(text) : [text], undefined)
  }

  async encodePrompt(text: string, tenant: string): Promise<number[]> {
    this.#checkLength(text.length)
    const ids = await this.#encodeSegments([text], tenant)
    return this.#bosId === undefined ? ids : [this.#bosId, ...ids]
  }

  async renderChat(messages: readonly ChatMessage[], addGenerationPrompt = true): Promise<string> {
    const { text, mark } = await this.#render(messages, addGenerationPrompt)
    return text.replaceAll(mark, '')
  }

  async encodeChat(messages: readonly ChatMessage[], tenant: string): Promise<number[]> {
    // A template that is not bounded may read the clock: the same chat need not give the same text.
    if (this.#bounded === undefined) return this.#encodeRendered(messages, tenant)
    const key = EncodingCache.key(tenant, 'chat', JSON.stringify(messages))
    const known = this.#cache.get(key)
    if (known !== undefined) return [...known]
    const ids = await this.#encodeRendered(messages, tenant)
    this.#cache.set(key, ids)
    return [...ids]
  }

  async #encodeRendered(messages: readonly ChatMessage[], tenant: string): Promise<number[]> {
    const { text, mark } = await this.#render(messages, true)
    const segments = this.#special.split(text)
    const unmarked = segments.map((part) => (typeof part === 'string' ? part.replaceAll(mark, '') : part))
    return this.#encodeSegments(unmarked, tenant)
  }

  decode(ids: readonly number[], skipSpecial: boolean): string {
    const text = decodeIds(this.#table, ids, skipSpecial)
    return this.#stripsSpace && text.startsWith(' ') ? text.slice(1) : text
  }

  tokenText(id: number): string {
    return this.#table.text(id)
  }

  newDetokenizer(skipSpecial: boolean): Detokenizer {
    return new StreamDetokenizer(this.#table, skipSpecial)
  }

  newOutput(options: OutputOptions): OutputText {
    return new StreamOutput(this.newDetokenizer(options.skipSpecial), options)
  }

  async close(): Promise<void> {
    await this.#renderer?.close()
  }

  /** The template's text, with `mark` inside whatever a message holds that looks like a special token. */
  async #render(
    messages: readonly ChatMessage[],
    addGenerationPrompt: boolean,
  ): Promise<{ text: string; mark: string }> {
    if (this.#renderer === undefined) {
      throw new GatewayError('template_failed', 'the model has no chat template', { param: 'messages' })
    }
    const contents = messages.flatMap(({ content, name }) => (name === undefined ? [content] : [content, name]))
    const characters = contents.reduce((sum, content) => sum + content.length, 0)
    this.#checkLength(characters)
    const mark = unusedMark(contents)
    if (mark === undefined) throw new GatewayError('invalid_request', 'the messages use every private-use character')
    const guarded = messages.map((message) => this.#guard(message, mark))
    const variables = { messages: guarded, add_generation_prompt: addGenerationPrompt }
    const text = this.#bounded?.render(variables, messages.length, characters)
    return { text: text ?? (await this.#renderer.render(variables)), mark }
  }

  #guard({ role, content, name }: ChatMessage, mark: string): ChatMessage {
    const guarded = { role, content: this.#special.guard(content, mark) }
    return name === undefined ? guarded : { ...guarded, name: this.#special.guard(name, mark) }
  }

  /** Ids of all segments in order. Without a tenant nothing is kept. */
  async #encodeSegments(segments: readonly Segment[], tenant: string | undefined): Promise<number[]> {
    const parts = this.#startingRight(segments)
      .filter((part) => part !== '')
      .map((part) => this.#known(part, tenant))
    const missing = parts.filter((part) => typeof part === 'string')
    const encoded = missing.length === 0 ? [] : await this.#encoder.encode(missing)
    if (tenant !== undefined) {
      missing.forEach((text, i) => this.#cache.set(EncodingCache.key(tenant, 'text', text), encoded[i] ?? []))
    }
    const next = encoded.values()
    return parts.flatMap((part) => (typeof part === 'string' ? (next.next().value ?? []) : part))
  }

  #startingRight(segments: readonly Segment[]): readonly Segment[] {
    const [first, ...rest] = segments
    return this.#startSpace && typeof first === 'string' ? [withStartSpace(first), ...rest] : segments
  }

  /** The ids of a part where they need no work. */
  #known(part: Segment, tenant: string | undefined): string | readonly number[] {
    if (typeof part === 'number') return [part]
    const constant = this.#constant.get(part)
    if (constant !== undefined || tenant === undefined) return constant ?? part
    return this.#cache.get(EncodingCache.key(tenant, 'text', part)) ?? part
  }

  #checkLength(length: number): void {
    if (length <= this.#maxLength) return
    const message = `the text has ${length} characters; the model's limit of ${this.#maxTokens} tokens is at most ${this.#maxLength}`
    throw new GatewayError('context_length_exceeded', message)
  }
}

function templateConstants(config: TokenizerConfig): Record<string, string> {
  const { bos_token, eos_token, unk_token, pad_token } = config
  const entries = Object.entries({ bos_token, eos_token, unk_token, pad_token })
  return Object.fromEntries(entries.flatMap(([name, value]) => (value ? [[name, value]] : [])))
}
