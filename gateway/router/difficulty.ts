/**
 * How hard a request looks, for `auto`: a cheap guess from signs that are easy to see, never from a model. It reads at
 * most a bounded part of the text, and every sign is a share from 0 to 1 with a fixed weight; docs/routing.md states
 * them.
 */
import type { GenerateInput } from '../request.js'

/** Characters that are looked at: this many at the beginning and as many at the end. */
const WINDOW = 4096

const WEIGHTS = { length: 0.25, code: 0.2, numbers: 0.15, languages: 0.1, depth: 0.1, tools: 0.2 } as const

/** Everything a sign can say, at these many characters, code marks, digits and messages. */
const FULL = { characters: 8000, codeMarks: 0.06, digits: 0.1, foreign: 0.3, messages: 12, tools: 4 } as const

/** Characters of prose per token, for prompts of token ids. */
const CHARACTERS_PER_TOKEN = 4

/** From 0 (easy) to 1 (hard). Takes a bounded time. */
export function difficultyOf(input: GenerateInput): number {
  const { characters, messages, tools, sample } = looked(input)
  const letters = Math.max(1, sample.length)
  const signs = {
    length: characters / FULL.characters,
    code: count(sample, /[{}()[\];=<>]|```/g) / letters / FULL.codeMarks,
    numbers: count(sample, /[0-9+*/^%]/g) / letters / FULL.digits,
    languages: count(sample, /[^\p{Script=Latin}\p{Script=Common}]/gu) / letters / FULL.foreign,
    depth: (messages - 1) / FULL.messages,
    tools: tools / FULL.tools,
  }
  return Object.entries(WEIGHTS).reduce((sum, [sign, weight]) => sum + weight * share(signs, sign), 0)
}

function share(signs: Readonly<Record<string, number>>, sign: string): number {
  return Math.min(1, Math.max(0, signs[sign] ?? 0))
}

interface Looked {
  characters: number
  /** Turns of the conversation. */
  messages: number
  /** Results of tools among them. */
  tools: number
  sample: string
}

function looked(input: GenerateInput): Looked {
  const one = { messages: 1, tools: 0 }
  if (input.kind === 'tokens') {
    return { ...one, characters: input.tokens.length * CHARACTERS_PER_TOKEN, sample: '' }
  }
  if (input.kind === 'text') return { ...one, characters: input.text.length, sample: ends(input.text) }
  const { messages } = input
  const asked = messages.findLast(({ role }) => role === 'user')?.content ?? ''
  return {
    characters: messages.reduce((sum, { content }) => sum + content.length, 0),
    messages: messages.filter(({ role }) => role !== 'system').length,
    tools: messages.filter(({ role }) => role === 'tool').length,
    sample: ends(asked),
  }
}

function ends(text: string): string {
  return text.length <= 2 * WINDOW ? text : text.slice(0, WINDOW) + text.slice(-WINDOW)
}

function count(text: string, pattern: RegExp): number {
  return text.match(pattern)?.length ?? 0
}
