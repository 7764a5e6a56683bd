import { TextDecoder } from 'node:util'
import type { TokenTable } from './token-table.js'
import type { Detokenizer } from './types.js'

/** Decodes ids as the WHATWG streaming UTF-8 decoder does: an unfinished character waits for its next bytes. */
export class StreamDetokenizer implements Detokenizer {
  readonly #table: TokenTable
  readonly #skipSpecial: boolean
  /** Made with the first token that is not whole characters: most streams never need one. */
  #decoder: TextDecoder | undefined
  /** Bytes may be held back in the decoder. */
  #pending = false

  constructor(table: TokenTable, skipSpecial: boolean) {
    this.#table = table
    this.#skipSpecial = skipSpecial
  }

  push(id: number): string {
    if (this.#skipSpecial && this.#table.isSpecial(id)) return ''
    const whole = this.#table.wholeText(id)
    if (whole !== undefined && !this.#pending) return whole
    const bytes = this.#table.bytes(id)
    if (bytes.length === 0) return ''
    this.#pending = whole === undefined
    this.#decoder ??= new TextDecoder('utf-8', { ignoreBOM: true })
    return this.#decoder.decode(bytes, { stream: true })
  }

  flush(): string {
    if (!this.#pending) return ''
    this.#pending = false
    return this.#decoder?.decode() ?? ''
  }
}

/** Text of a whole list of ids. */
export function decodeIds(table: TokenTable, ids: readonly number[], skipSpecial: boolean): string {
  const detokenizer = new StreamDetokenizer(table, skipSpecial)
  let text = ''
  for (const id of ids) text += detokenizer.push(id)
  return text + detokenizer.flush()
}
