import { byteLevelBytes, sentencePieceBytes } from '../../engine/text/token-bytes.js'
import type { TokenizerFile } from './assets.js'

const STRICT = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
const LENIENT = new TextDecoder('utf-8', { ignoreBOM: true })
const NO_BYTES = new Uint8Array()

/** What every token id stands for. Entries are made when they are first asked for. */
export class TokenTable {
  /** Ids run from 0 to size - 1. */
  readonly size: number
  /** The longest token in bytes. */
  readonly longest: number
  readonly #names: (string | undefined)[] = []
  readonly #bytesOf: (name: string) => Uint8Array
  readonly #added = new Map<number, string>()
  readonly #special = new Set<number>()
  readonly #bytes: (Uint8Array | undefined)[] = []
  /** null: not UTF-8 on its own. */
  readonly #texts: (string | null | undefined)[] = []

  constructor({ model, added_tokens: added, decoder }: TokenizerFile) {
    this.#bytesOf = decoder.type === 'ByteLevel' ? byteLevelBytes : sentencePieceBytes
    for (const [name, id] of Object.entries(model.vocab)) this.#names[id] = name
    for (const { id, content, special } of added) {
      this.#names[id] ??= content
      this.#added.set(id, content)
      if (special) this.#special.add(id)
    }
    this.size = this.#names.length
    this.longest = this.#names.reduce((longest, name) => Math.max(longest, name?.length ?? 0), 1)
  }

  /** True for control tokens: they carry no text of their own for a reader. */
  isSpecial(id: number): boolean {
    return this.#special.has(id)
  }

  /** The token's bytes; none for ids outside the vocabulary. */
  bytes(id: number): Uint8Array {
    const known = this.#bytes[id]
    if (known !== undefined) return known
    const name = this.#names[id]
    if (name === undefined) return NO_BYTES
    return (this.#bytes[id] = this.#added.has(id) ? Buffer.from(name) : this.#bytesOf(name))
  }

  /** The token's text where its bytes are whole characters, otherwise undefined. */
  wholeText(id: number): string | undefined {
    const known = this.#texts[id]
    if (known !== undefined) return known ?? undefined
    if (this.#names[id] === undefined) return ''
    const text = strictText(this.bytes(id))
    this.#texts[id] = text
    return text ?? undefined
  }

  /** The token's text on its own, with U+FFFD for parts of characters. */
  text(id: number): string {
    return this.wholeText(id) ?? LENIENT.decode(this.bytes(id))
  }
}

function strictText(bytes: Uint8Array): string | null {
  try {
    return STRICT.decode(bytes)
  } catch {
    return null
  }
}
