/** Seeded damage to texts: what a fuzz test feeds to a parser. */

/** Numbers in [0, 1) from a seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const TOKENS = [
  '-1',
  '0',
  '1e999',
  '9007199254740993',
  '4294967296',
  '0.5',
  'null',
  'true',
  '[]',
  '{}',
  '"x"',
  '[[[',
  '{"a":',
].concat([
  '"__proto__"',
  '"\\u0000"',
  '"../x.safetensors"',
  'NaN',
  ',',
  ':',
  '}',
  ']',
  '"',
  '-',
  '18446744073709551615',
])

/** `text` with one to four changes: bytes, tokens, numbers, parts taken away or doubled. */
export function mutate(text: string, random: () => number): Buffer {
  let changed = text
  const times = 1 + Math.floor(random() * 4)
  for (let i = 0; i < times; i++) changed = mutateOnce(changed, random)
  const bytes = Buffer.from(changed)
  // Now and then no UTF-8.
  if (random() < 0.05 && bytes.length > 0) bytes[Math.floor(random() * bytes.length)] = 0xff
  return bytes
}

function mutateOnce(text: string, random: () => number): string {
  const at = Math.floor(random() * (text.length + 1))
  const span = Math.floor(random() * 12)
  const token = TOKENS[Math.floor(random() * TOKENS.length)] ?? ''
  switch (Math.floor(random() * 6)) {
    case 0:
      return text.slice(0, at) + String.fromCharCode(32 + Math.floor(random() * 95)) + text.slice(at + 1)
    case 1:
      return text.slice(0, at) + token + text.slice(at)
    case 2:
      return text.slice(0, at) + text.slice(at + span)
    case 3:
      return text.slice(0, at + span) + text.slice(at)
    default:
      return replaceNumber(text, at, random() < 0.5 ? token : String(Math.floor(random() * 2 ** (random() * 60))))
  }
}

/** The first number or word after `at` becomes `value`. */
function replaceNumber(text: string, at: number, value: string): string {
  const match = /-?\d+(?:\.\d+)?|true|false|"[^"]*"/.exec(text.slice(at))
  if (match === null) return text
  return text.slice(0, at + match.index) + value + text.slice(at + match.index + match[0].length)
}
