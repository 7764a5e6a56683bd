/** SentencePiece BPE vocabularies (`tokenizer.ggml.model` llama), in the terms of a Hugging Face tokenizer.json. */
import type { PreTokenizer } from './pre-tokenizer.js'

const SPACE = '\u2581'
const escapeSpaces = { type: 'Replace', pattern: { String: ' ' }, content: SPACE }

/** No splitting before merging; with `spacePrefix` a space goes before every piece of text. */
export function sentencePiece(spacePrefix: boolean): PreTokenizer {
  const prefix = { type: 'Prepend', prepend: SPACE }
  return {
    preTokenizer: null,
    normalizer: spacePrefix ? { type: 'Sequence', normalizers: [prefix, escapeSpaces] } : escapeSpaces,
    ignoreMerges: false,
    addBos: true,
  }
}

/** The decoder that undoes it. */
export function sentencePieceDecoder(spacePrefix: boolean): object {
  const steps = [
    { type: 'Replace', pattern: { String: SPACE }, content: ' ' },
    { type: 'ByteFallback' },
    { type: 'Fuse' },
    ...(spacePrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
  ]
  return { type: 'Sequence', decoders: steps }
}

interface Merge {
  pair: string
  score: number
  left: number
  right: number
}

/**
 * SentencePiece merges the pair whose token has the best score first: the same as merges ranked by score. Every way to
 * cut a token into two tokens is a merge; ties as in transformers' conversion (longer parts first).
 */
export function mergesByScore(tokens: ReadonlyMap<string, number>, scores: ArrayLike<number>): string[] {
  const merges: Merge[] = []
  for (const [token, id] of tokens) {
    const ways: Merge[] = []
    for (let cut = 1; cut < token.length; cut++) {
      const [left, right] = [token.slice(0, cut), token.slice(cut)]
      if (!tokens.has(left) || !tokens.has(right)) continue
      ways.push({ pair: `${left} ${right}`, score: scores[id] ?? 0, left: cut, right: token.length - cut })
    }
    merges.push(...ways)
  }
  return merges.toSorted((a, b) => b.score - a.score || b.left - a.left || b.right - a.right).map(({ pair }) => pair)
}
