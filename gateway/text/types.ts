/** What the generation pipeline may use of a model's text side. `loadTextModel` (model-text.ts) makes one. */
import type { ChatMessage } from '../request.js'

/** One file of a model as the engine hands it over (GetModelAssets). */
export interface ModelAsset {
  name: string
  data: Uint8Array
}

/** Everything text of one model: tokenizer, chat template, token texts. Owns a process that renders the template: close it. */
export interface TextModel {
  /** Ids run from 0 to vocabSize - 1. */
  readonly vocabSize: number
  /** Ids that end a turn; the pipeline adds them to a sequence's stop tokens. */
  readonly eosTokenIds: readonly number[]
  /** False: the model has no chat template and chat requests are refused with template_failed. */
  readonly hasChatTemplate: boolean
  /**
   * Ids of `text`. Special tokens in it become ids only when `parseSpecial` is set; nothing is added.
   * Lone surrogates count as U+FFFD. Throws context_length_exceeded, before any work, when the text must give
   * more than `maxTokens` tokens whatever is in it.
   */
  encode(text: string, parseSpecial: boolean): Promise<number[]>
  /**
   * Ids of a plain prompt: as encode without special tokens, with the model's BOS in front where it wants one. What one
   * tenant sends again need not be encoded again.
   */
  encodePrompt(text: string, tenant: string): Promise<number[]>
  /** The template's text for a conversation, with the generation prompt. Throws template_failed, queue_full. */
  renderChat(messages: readonly ChatMessage[], addGenerationPrompt?: boolean): Promise<string>
  /**
   * Ids of a conversation: the template's special tokens become ids, those typed into messages stay text. What one
   * tenant sends again need not be encoded again.
   */
  encodeChat(messages: readonly ChatMessage[], tenant: string): Promise<number[]>
  /** Text of `ids`; U+FFFD for bytes that are not UTF-8. Ids outside the vocabulary give nothing. */
  decode(ids: readonly number[], skipSpecial: boolean): string
  /** Text of one token on its own, special tokens included (may hold U+FFFD for a part of a character). */
  tokenText(id: number): string
  /** Incremental decoding of one choice. */
  newDetokenizer(skipSpecial: boolean): Detokenizer
  /** Incremental decoding with stop strings: what a choice's tokens become for the client. */
  newOutput(options: OutputOptions): OutputText
  /** Ends the process; pending renders fail with shutting_down. */
  close(): Promise<void>
}

/** Turns ids into text deltas that never hold a part of a character. */
export interface Detokenizer {
  push(id: number): string
  /** What is still held back, with U+FFFD for an unfinished character. */
  flush(): string
}

/** How a choice's output is read. */
export interface OutputOptions {
  /** Stop strings; empty ones are ignored. */
  stop: readonly string[]
  /** Stop strings are not looked for in the first `minTokens` tokens. */
  minTokens: number
  /** Special tokens give no text. */
  skipSpecial: boolean
}

/**
 * Text that may go to the client now, and how many of the pushed tokens (in order) it completes: their text is
 * wholly in it or in earlier chunks. A chunk without text completes no token, except at the end.
 */
export interface OutputChunk {
  text: string
  tokens: number
  /** A stop string was found: the text before it is out, the rest is dropped and the choice is over. */
  stopped: boolean
}

/** One choice's output: detokenizer, stop strings and the alignment of tokens with text. */
export interface OutputText {
  push(id: number): OutputChunk
  /** Gives out what is held back, when the choice ended without a stop string. */
  finish(): OutputChunk
}
