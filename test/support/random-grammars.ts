/** Random regular expressions and grammars, and random vocabularies to spell their texts with. */
import * as fc from 'fast-check'

const ATOMS = [
  'a',
  'b',
  'ab',
  '1',
  '_',
  'é',
  '😀',
  '\\n',
  '\\x61',
  '\\u{1F600}',
  '.',
  '\\d',
  '\\w',
  '\\s',
  '\\D',
  '\\W',
  '\\S',
]
const CLASS_ITEMS = ['a', 'b', 'a-c', '0-9', 'é', '😀', '\\d', '\\w', '\\s', '\\S', '\\-', '\\u2028', 'é-😀']
const QUANTIFIERS = ['*', '+', '?', '{2}', '{0}', '{0,2}', '{1,3}', '{2,}', '*?', '+?', '??', '{1,2}?']

const characterClass = fc
  .tuple(fc.boolean(), fc.array(fc.constantFrom(...CLASS_ITEMS), { maxLength: 3 }))
  .map(([negated, items]) => `[${negated ? '^' : ''}${items.join('')}]`)

const { inner } = fc.letrec<{ atom: string; piece: string; run: string; inner: string }>((tie) => ({
  atom: fc.oneof(
    { maxDepth: 4, depthSize: 'small' },
    { weight: 5, arbitrary: fc.constantFrom(...ATOMS.filter((atom) => atom !== 'ab')) },
    { weight: 2, arbitrary: characterClass },
    { weight: 1, arbitrary: tie('inner').map((one) => `(${one})`) },
    { weight: 1, arbitrary: tie('inner').map((one) => `(?:${one})`) },
  ),
  piece: fc.oneof(
    { weight: 3, arbitrary: tie('atom') },
    { weight: 2, arbitrary: fc.tuple(tie('atom'), fc.constantFrom(...QUANTIFIERS)).map((both) => both.join('')) },
  ),
  run: fc.array(tie('piece'), { maxLength: 3 }).map((all) => all.join('')),
  inner: fc.array(tie('run'), { minLength: 1, maxLength: 3 }).map((all) => all.join('|')),
}))

/** As people write them, with the flag u. */
export const randomPattern: fc.Arbitrary<string> = fc
  .tuple(inner, fc.constantFrom('', '^', '^', '^^'), fc.constantFrom('', '$', '$'), fc.constantFrom('', '(?<name>'))
  .map(([pattern, begin, end, group]) => `${begin}${group === '' ? `(?:${pattern})` : `${group}${pattern})`}${end}`)

const NAMES = ['root', 'one', 'two']
const TERMINALS = ['"a"', '"b"', '"ab"', '"é"', '""', '[ab]', '[^a]', '.', '"😀"']

/** Rules that may call one another; many are left recursive, or have no end. */
export const randomEbnf: fc.Arbitrary<string> = fc
  .array(
    fc.array(
      fc.array(
        fc.oneof(
          { weight: 3, arbitrary: fc.constantFrom(...TERMINALS) },
          { weight: 1, arbitrary: fc.constantFrom(...NAMES) },
          {
            weight: 1,
            arbitrary: fc
              .tuple(fc.constantFrom(...TERMINALS, ...NAMES), fc.constantFrom('*', '+', '?', '{2}', '{1,3}'))
              .map((both) => both.join('')),
          },
        ),
        { maxLength: 3 },
      ),
      { minLength: 1, maxLength: 3 },
    ),
    { minLength: NAMES.length, maxLength: NAMES.length },
  )
  .map((rules) =>
    rules.map((all, i) => `${NAMES[i] ?? ''} ::= ${all.map((items) => items.join(' ')).join(' | ')}`).join('\n'),
  )

/** Short tokens of the bytes that the grammars above are about; some twice, some empty, some no text. */
export const randomVocabulary: fc.Arbitrary<(Uint8Array | undefined)[]> = fc.array(
  fc.oneof(
    fc
      .array(fc.constantFrom('a', 'b', 'ab', '1', 'é', '😀', '\n', ' '), { maxLength: 4 })
      .map((all) => Buffer.from(all.join(''))),
    fc.uint8Array({ maxLength: 3 }),
    fc.constantFrom(0xc3, 0xa9, 0xf0, 0x9f, 0x98, 0x80, 0x61, 0x62).map((byte) => Uint8Array.of(byte)),
    fc.constant(undefined),
  ),
  { minLength: 1, maxLength: 70 },
)
