import type { ModelAsset } from '../../engine/registry/index.js'
import { preTokenizerNamed } from '../../engine/registry/pre-tokenizer.js'
import { ggufText } from '../../engine/registry/tokenizer.js'

const SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']

/** Ends a turn. */
export const TINY_STOP_TOKEN = 2

/** Three special tokens and one for each byte. */
export const TINY_VOCAB_SIZE = SPECIAL.length + 256

const TEMPLATE = `{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}`

/** The printable stand-in of every byte in byte-level BPE vocabularies (as in GPT-2). */
function byteAlphabet(): string[] {
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173)
    return String.fromCharCode(printable ? byte : next++)
  })
}

/** Token ids of a text. */
export function tinyTokens(text: string): number[] {
  return [...Buffer.from(text)].map((byte) => byte + SPECIAL.length)
}

/** The text assets of a byte-level model. */
export function tinyTokenizerAssets(contextLength: number): ModelAsset[] {
  const pre = preTokenizerNamed('smollm')
  if (!pre) throw new Error('the pre-tokenizer is not known')
  const tokenizer = {
    tokens: [...SPECIAL, ...byteAlphabet()],
    merges: [],
    control: [0, 1, 2],
    userDefined: [],
    pre,
    bosId: undefined,
    eosIds: [TINY_STOP_TOKEN],
    unknownId: undefined,
    paddingId: undefined,
    addBos: false,
    chatTemplate: TEMPLATE,
  }
  return ggufText(tokenizer, contextLength)
}

/** tokenizer.json as `ggufText` writes it, as far as tests change it. */
export interface TokenizerJson {
  added_tokens: { id: number; content: string }[]
  model: { vocab: Record<string, number>; merges: [string, string][] }
}

/** The same assets with a changed tokenizer.json. */
export function changedTokenizerAssets(change: (file: TokenizerJson) => object): ModelAsset[] {
  return tinyTokenizerAssets(8192).map(({ name, data }) => {
    if (name !== 'tokenizer.json') return { name, data }
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- this package's own file
    const file = JSON.parse(Buffer.from(data).toString()) as TokenizerJson
    return { name, data: Buffer.from(JSON.stringify(change(file))) }
  })
}
