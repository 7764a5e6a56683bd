/** What the names of tokens in a tokenizer.json stand for. */

/**
 * Byte-level BPE writes each byte as one printable character (GPT-2's table): printable ASCII and Latin-1 stand for
 * themselves, the other 68 bytes are U+0100 and up, in order.
 */
const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = byteAlphabet()

function byteAlphabet(): Map<string, number> {
  const alphabet = new Map<string, number>()
  let next = 0x100
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad)
    alphabet.set(String.fromCodePoint(printable ? byte : next++), byte)
  }
  return alphabet
}

/** SentencePiece's mark for a space. */
export const SPACE_MARK = '\u2581'
const BYTE_NAME = /^<0x([0-9A-F]{2})>$/

/** Of byte-level BPE. A name with a character outside the alphabet stands for itself, as in the tokenizers library's decoder. */
export function byteLevelBytes(name: string): Uint8Array {
  const bytes: number[] = []
  for (const character of name) {
    const byte = BYTE_OF_CHARACTER.get(character)
    if (byte === undefined) return Buffer.from(name)
    bytes.push(byte)
  }
  return Uint8Array.from(bytes)
}

/**
 * Of tokenizers made from SentencePiece models (Llama 2, Mistral, Gemma, Phi-3): bytes without a token of their own have
 * one named "<0x0A>".
 */
export function sentencePieceBytes(name: string): Uint8Array {
  const byte = BYTE_NAME.exec(name)?.[1]
  return byte === undefined ? Buffer.from(name.replaceAll(SPACE_MARK, ' ')) : Uint8Array.of(Number.parseInt(byte, 16))
}
