/**
 * Pre-tokenizers by the name that GGUF files give them (`tokenizer.ggml.pre`), in the terms of a Hugging Face
 * tokenizer.json. Only names whose splitting is known exactly are here.
 */

/** How text is split before byte-pair merging, and what goes with it. */
export interface PreTokenizer {
  /** The `pre_tokenizer` of tokenizer.json. */
  preTokenizer: object | null
  /** The `normalizer` of tokenizer.json. */
  normalizer: object | null
  /** A whole piece that is a token is taken as it is, without merging. */
  ignoreMerges: boolean
  /** Whether prompts start with BOS where the file does not say. */
  addBos: boolean
}

const byteLevel = (useRegex: boolean) => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: useRegex,
})

const split = (pattern: string) => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false },
    byteLevel(false),
  ],
})

// The pattern of GPT-4 (cl100k) with its bound on the length of numbers.
const cl100k = (digits: string) =>
  String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|${digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

const plain = { normalizer: null, ignoreMerges: false, addBos: false }

// GPT-2's pattern after every digit was set apart.
const digitsThenGpt2: PreTokenizer = {
  ...plain,
  preTokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel(true)] },
}

const llama3: PreTokenizer = {
  preTokenizer: split(cl100k(String.raw`\p{N}{1,3}`)),
  normalizer: null,
  ignoreMerges: true,
  addBos: true,
}
const qwen2: PreTokenizer = { ...plain, preTokenizer: split(cl100k(String.raw`\p{N}`)), normalizer: { type: 'NFC' } }

const KNOWN: ReadonlyMap<string, PreTokenizer> = new Map([
  ['gpt-2', { ...plain, preTokenizer: byteLevel(true) }],
  ['smollm', digitsThenGpt2],
  ['starcoder', digitsThenGpt2],
  ['refact', digitsThenGpt2],
  ['command-r', digitsThenGpt2],
  ['llama-bpe', llama3],
  ['llama3', llama3],
  ['llama-v3', llama3],
  ['qwen2', qwen2],
  ['smaug-bpe', { ...llama3, ignoreMerges: false, addBos: false }],
])

/** Undefined for a name that is not known. */
export function preTokenizerNamed(name: string): PreTokenizer | undefined {
  return KNOWN.get(name)
}

/** The names that `preTokenizerNamed` knows. */
export function knownPreTokenizers(): string[] {
  return [...KNOWN.keys()]
}
