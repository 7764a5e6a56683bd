import { Tokenizer } from 'tokenizers'
import type { TokenizerFile } from './assets.js'

/**
 * Text to ids by the `tokenizers` library, off the event loop, with every special token taken out of its vocabulary:
 * whatever the text holds, no id of a control token comes out. The ids are of this text, whole and alone: nothing is cut
 * off, padded or left to chance.
 */
export class BpeEncoder {
  readonly #tokenizer: Tokenizer
  #waiting: Job[] = []

  constructor(file: TokenizerFile) {
    this.#tokenizer = Tokenizer.fromString(JSON.stringify(withoutTraining(withoutSpecial(file))))
  }

  /** Ids of each text. */
  encode(texts: readonly string[]): Promise<number[][]> {
    return Promise.all(texts.map((text) => (text.length > SHORT ? this.#encodeAlone(text) : this.#enqueue(text))))
  }

  async #encodeAlone(text: string): Promise<number[]> {
    return (await this.#tokenizer.encode(text, null, PLAIN)).getIds()
  }

  /** Encoded with all short texts of this turn of the event loop: handing work to a thread costs more than a text. */
  #enqueue(text: string): Promise<number[]> {
    return new Promise((resolve, reject) => {
      if (this.#waiting.push({ text, resolve, reject }) === 1) setImmediate(() => this.#encodeWaiting())
    })
  }

  #encodeWaiting(): void {
    const jobs = this.#waiting
    this.#waiting = []
    for (let start = 0; start < jobs.length; start += MAX_BATCH) {
      void this.#encodeBatch(jobs.slice(start, start + MAX_BATCH))
    }
  }

  async #encodeBatch(jobs: readonly Job[]): Promise<void> {
    try {
      const texts = jobs.map(({ text }) => text)
      const encodings = await this.#tokenizer.encodeBatch(texts, PLAIN)
      jobs.forEach(({ resolve }, i) => resolve(encodings[i]?.getIds() ?? []))
    } catch {
      // One text's failure is no other's.
      for (const { text, resolve, reject } of jobs) this.#encodeAlone(text).then(resolve, reject)
    }
  }
}

interface Job {
  text: string
  resolve: (ids: number[]) => void
  reject: (error: unknown) => void
}

/** UTF-16 units up to which a text takes less time than a thread's hand-over. */
const SHORT = 2048
/** Texts of one batch: more of them would make the first wait for the last. */
const MAX_BATCH = 32

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

/**
 * Without what a file keeps from training, where texts are cut or padded to the length of a batch and merges are left
 * out at random.
 */
function withoutTraining(file: TokenizerFile): TokenizerFile {
  return { ...file, truncation: null, padding: null, model: { ...file.model, dropout: null } }
}
