/**
 * Special tokens in text: where they are, and how those that a user typed are kept from becoming control tokens while
 * a chat template puts its own around them.
 */

const FIRST_PRIVATE = 0xe000
const LAST_PRIVATE = 0xf8ff

/** As the tokenizers library has it, unlike \s here: with U+0085, without U+FEFF. None is a surrogate pair. */
const WHITE_SPACE = /^\p{White_Space}$/u

/** Text between special tokens, or the id of one. */
export type Segment = string | number

/** A special token; white space on the side that it strips belongs to it. */
export interface SpecialToken {
  id: number
  content: string
  lstrip: boolean
  rstrip: boolean
}

/** The special tokens of a model. */
export class SpecialTokens {
  readonly #tokens: ReadonlyMap<string, SpecialToken>
  readonly #any: RegExp | undefined
  /** Proper beginnings and ends of special tokens: text that may become one together with its neighbours. */
  readonly #heads = new Set<string>()
  readonly #tails = new Set<string>()
  readonly #longest: number

  constructor(tokens: readonly SpecialToken[]) {
    // One of a single character could not be told from text, nor broken up: it stays text.
    const usable = tokens.filter(({ content }) => Array.from(content).length > 1)
    this.#tokens = new Map(usable.map((token) => [token.content, token]))
    const contents = [...this.#tokens.keys()].toSorted((a, b) => b.length - a.length)
    this.#longest = contents[0]?.length ?? 0
    // The longest alternative comes first, as in the tokenizers library: leftmost, then longest.
    if (contents.length > 0) this.#any = new RegExp(contents.map(escapeRegExp).join('|'), 'gu')
    for (const content of contents) {
      for (let cut = 1; cut < content.length; cut++) {
        this.#heads.add(content.slice(0, cut))
        this.#tails.add(content.slice(cut))
      }
    }
  }

  /** Cuts text at its special tokens and the white space that they strip; no empty text in between. */
  split(text: string): Segment[] {
    if (this.#any === undefined) return text === '' ? [] : [text]
    const segments: Segment[] = []
    let end = 0
    for (const match of text.matchAll(this.#any)) {
      const token = this.#tokens.get(match[0])
      if (token === undefined) continue
      const stop = token.lstrip ? spaceBefore(text, match.index, end) : match.index
      if (stop > end) segments.push(text.slice(end, stop))
      segments.push(token.id)
      end = match.index + token.content.length
      if (token.rstrip) end = spaceAfter(text, end)
    }
    if (end < text.length) segments.push(text.slice(end))
    return segments
  }

  /**
   * Breaks every special token in `text` with `mark`, and every beginning or end of one at its borders, so that no
   * special token is found in it or across its borders. Removing `mark` gives the text back. Outer white space stays
   * outside, since templates trim.
   */
  guard(text: string, mark: string): string {
    if (this.#any === undefined) return text
    const broken = text.replace(this.#any, (token) => breakUp(token, mark))
    const trimmed = broken.trim()
    if (trimmed === '') return broken
    const start = broken.indexOf(trimmed)
    const before = this.#touches(this.#tails, (length) => trimmed.slice(0, length)) ? mark : ''
    const after = this.#touches(this.#heads, (length) => trimmed.slice(-length)) ? mark : ''
    if (before === '' && after === '') return broken
    return broken.slice(0, start) + before + trimmed + after + broken.slice(start + trimmed.length)
  }

  #touches(parts: ReadonlySet<string>, piece: (length: number) => string): boolean {
    for (let length = 1; length < this.#longest; length++) if (parts.has(piece(length))) return true
    return false
  }
}

/** A private-use character that is in none of the texts; undefined when they use all 6,400 of them. */
export function unusedMark(texts: readonly string[]): string | undefined {
  const used = new Set<number>()
  for (const text of texts) {
    for (const [character] of text.matchAll(/[\ue000-\uf8ff]/g)) used.add(character.charCodeAt(0))
  }
  for (let unit = FIRST_PRIVATE; unit <= LAST_PRIVATE; unit++) {
    if (!used.has(unit)) return String.fromCharCode(unit)
  }
  return undefined
}

/** Where the white space that ends at `end` begins, not before `start`. A regular expression would try every beginning. */
function spaceBefore(text: string, end: number, start: number): number {
  let at = end
  while (at > start && WHITE_SPACE.test(text[at - 1] ?? '')) at--
  return at
}

/** Where the white space that begins at `start` ends. */
function spaceAfter(text: string, start: number): number {
  let at = start
  while (at < text.length && WHITE_SPACE.test(text[at] ?? '')) at++
  return at
}

/** The mark after the first character. */
function breakUp(token: string, mark: string): string {
  const [first = ''] = token
  return first + mark + token.slice(first.length)
}

function escapeRegExp(text: string): string {
  return text.replaceAll(/[\\^$.*+?()[\]{}|/]/g, String.raw`\$&`)
}
