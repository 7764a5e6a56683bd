import { Tokenizer } from 'tokenizers'
import type { TokenizerFile } from './assets.js'

/**
 * Text to ids by the `tokenizers` library, off the event loop, with every special token taken out of its vocabulary:
 * whatever the text holds, no id of a control token comes out.
 */
export class BpeEncoder {
  readonly #tokenizer: Tokenizer

  constructor(file: TokenizerFile) {
    this.#tokenizer = Tokenizer.fromString(JSON.stringify(withoutSpecial(file)))
  }

  /** Ids of each text. */
  async encode(texts: readonly string[]): Promise<number[][]> {
    if (texts.length === 0) return []
    const [only, ...more] = texts
    if (only !== undefined && more.length === 0) return [(await this.#tokenizer.encode(only, null, PLAIN)).getIds()]
    const encodings = await this.#tokenizer.encodeBatch([...texts], PLAIN)
    return encodings.map((encoding) => encoding.getIds())
  }
}

const PLAIN = { addSpecialTokens: false }

function withoutSpecial(file: TokenizerFile): TokenizerFile {
  const special = new Set(file.added_tokens.filter((token) => token.special).map((token) => token.content))
  const isPlain = (merge: string | [string, string]) => {
    const [left = '', right = ''] = typeof merge === 'string' ? merge.split(' ') : merge
    return !special.has(left) && !special.has(right) && !special.has(left + right)
  }
  return {
    ...file,
    added_tokens: file.added_tokens.filter((token) => !token.special),
    model: {
      ...file.model,
      vocab: Object.fromEntries(Object.entries(file.model.vocab).filter(([name]) => !special.has(name))),
      merges: file.model.merges.filter(isPlain),
    },
  }
}
