import { describe, expect, it } from 'vitest'
import { accepts, tinyKeeper } from '../support/grammar-walk.js'

const keeperOf = (schema: unknown): ReturnType<typeof tinyKeeper> =>
  tinyKeeper({ $case: 'jsonSchema', jsonSchema: JSON.stringify(schema) })

const deep = (levels: number): unknown =>
  Array.from({ length: levels }).reduce<unknown>((items) => ({ type: 'array', items }), { type: 'null' })

type Refusal = readonly [schema: unknown, reason: string]

const REFUSED: readonly Refusal[] = [
  // Keywords, each at its place.
  [{ multipleOf: 2 }, "the schema's multipleOf: is not kept"],
  [{ uniqueItems: true }, "the schema's uniqueItems: is not kept"],
  [{ contains: {} }, "the schema's contains: is not kept"],
  [{ minProperties: 1 }, "the schema's minProperties: is not kept"],
  [{ maxProperties: 0 }, "the schema's maxProperties: is not kept"],
  [{ patternProperties: {} }, "the schema's patternProperties: is not kept"],
  [{ propertyNames: {} }, "the schema's propertyNames: is not kept"],
  [{ dependentRequired: {} }, "the schema's dependentRequired: is not kept"],
  [{ dependentSchemas: {} }, "the schema's dependentSchemas: is not kept"],
  [{ dependencies: {} }, "the schema's dependencies: is not kept"],
  [{ additionalItems: {} }, "the schema's additionalItems: is not kept"],
  [{ not: {} }, "the schema's not: is not kept"],
  [{ if: {} }, "the schema's if: is not kept"],
  [{ $dynamicRef: '#a' }, "the schema's $dynamicRef: is not kept"],
  [{ $recursiveRef: '#' }, "the schema's $recursiveRef: is not kept"],
  [{ properties: { a: { items: { not: {} } } } }, "the schema's properties.a.items.not: is not kept"],
  [
    { anyOf: [true, { prefixItems: [{ multipleOf: 1 }] }] },
    "the schema's anyOf.1.prefixItems.0.multipleOf: is not kept",
  ],
  [{ additionalProperties: { not: {} } }, "the schema's additionalProperties.not: is not kept"],
  [{ $ref: '#/$defs/a', $defs: { a: { not: {} } } }, "the schema's $defs.a.not: is not kept"],
  // Types.
  [{ type: 'text' }, "the schema's type: must be one of string, integer, number, boolean, null, array, object"],
  [{ type: ['null', 'text'] }, "the schema's type: must be one of"],
  [{ type: [] }, "the schema's type: must not be empty"],
  [{ type: 5 }, "the schema's type: must be one of"],
  [false, 'the schema: nothing follows the schema false'],
  [{ properties: { a: false } }, "the schema's properties.a: nothing follows the schema false"],
  [{ type: 'array', items: false, minItems: 1 }, "the schema's minItems: is more than there may be"],
  [5, 'the schema: is no schema'],
  [null, 'the schema: is no schema'],
  [[], 'the schema: is no schema'],
  [{ items: null }, "the schema's items: is no schema"],
  // Strings.
  ...['ipv6', 'idn-email', 'idn-hostname', 'uri-reference', 'iri', 'iri-reference', 'uri-template'].map(
    (format): Refusal => [{ format }, `the schema's format: ${format} is not kept`],
  ),
  ...['json-pointer', 'relative-json-pointer', 'regex'].map((format): Refusal => [
    { items: { type: 'string', format } },
    `the schema's items.format: ${format} is not kept`,
  ]),
  [{ pattern: 'a', minLength: 1 }, 'the schema: of pattern, length and format only one is kept'],
  [{ pattern: 'a', format: 'date' }, 'the schema: of pattern, length and format only one is kept'],
  [{ properties: { x: { maxLength: 1, format: 'date' } } }, "the schema's properties.x: of pattern, length"],
  [{ pattern: 5 }, "the schema's pattern: must be a string"],
  [{ pattern: '(' }, 'the schema\'s pattern: the pattern "(": Unterminated group'],
  [{ minLength: 3, maxLength: 2 }, "the schema's minLength: is more than maxLength"],
  [{ minLength: -1 }, "the schema's minLength: must be a whole number"],
  [{ maxLength: 1.5 }, "the schema's maxLength: must be a whole number"],
  [{ maxLength: 10_001 }, "the schema's maxLength: must be at most 10000"],
  // Numbers.
  [{ type: 'integer', minimum: 2, maximum: 1 }, 'the schema: nothing lies between its bounds'],
  [{ items: { exclusiveMinimum: 1, exclusiveMaximum: 1 } }, "the schema's items: nothing lies between its bounds"],
  [{ minimum: '1' }, "the schema's minimum: must be a number"],
  [{ type: 'number', exclusiveMinimum: true }, "the schema's exclusiveMinimum: must be a number"],
  [{ type: 'integer', maximum: 1e15 }, 'the schema: a bound has more than 15 digits'],
  // Arrays.
  [{ minItems: 2, maxItems: 1 }, "the schema's minItems: is more than there may be"],
  [{ minItems: '2' }, "the schema's minItems: must be a whole number"],
  [{ maxItems: 10_001 }, "the schema's maxItems: must be at most 10000"],
  [{ items: [{}] }, "the schema's items: must be one schema (prefixItems is a list)"],
  [{ prefixItems: [] }, "the schema's prefixItems: must be a list that is not empty"],
  [{ prefixItems: {} }, "the schema's prefixItems: must be a list that is not empty"],
  [{ prefixItems: [true], minItems: 2 }, "the schema's prefixItems: does not fit minItems and maxItems"],
  [{ prefixItems: [true, true], maxItems: 1 }, "the schema's prefixItems: does not fit minItems and maxItems"],
  // Objects.
  [{ properties: [] }, "the schema's properties: must be an object"],
  [{ required: 'a' }, "the schema's required: must be a list"],
  [{ required: ['a'] }, 'the schema\'s required: names "a", which is not among properties'],
  [{ properties: { a: true }, required: ['a', 'b'] }, 'the schema\'s required: names "b", which is not among'],
  [{ properties: { a: true }, required: [5] }, "the schema's required: names 5, which is not among properties"],
  [{ properties: { a: true }, required: ['toString'] }, 'the schema\'s required: names "toString", which'],
  // References.
  [{ $ref: 'https://example.com/a.json' }, "the schema's $ref: must begin with #/"],
  [{ $ref: 'a.json#/b' }, "the schema's $ref: must begin with #/"],
  [{ $ref: '#anchor' }, "the schema's $ref: must begin with #/"],
  [{ $ref: 5 }, "the schema's $ref: must begin with #/"],
  [{ items: { $ref: '#/$defs/a' } }, "the schema's items.$ref: leads nowhere: #/$defs/a"],
  [{ $ref: '#/$defs/a/toString', $defs: { a: {} } }, "the schema's $ref: leads nowhere: #/$defs/a/toString"],
  [{ $ref: '#/title/0', title: 'abc' }, "the schema's $ref: leads nowhere: #/title/0"],
  [{ $ref: '#/anyOf/length', $defs: {} }, "the schema's $ref: leads nowhere: #/anyOf/length"],
  [{ $ref: '#' }, 'no text follows the grammar: nothing ends it'],
  [{ $ref: '#/$defs/a', $defs: { a: { $ref: '#/$defs/b' }, b: { $ref: '#/$defs/a' } } }, 'nothing ends it'],
  [{ anyOf: [{ type: 'null' }, { $ref: '#' }] }, '# begins with itself: left recursion is not kept'],
  [{ properties: { a: { $ref: '#' } }, required: ['a'] }, 'no text follows the grammar: nothing ends it'],
  [{ type: 'array', items: { $ref: '#' }, minItems: 1 }, 'no text follows the grammar: nothing ends it'],
  // Beside one another.
  [{ $ref: '#/$defs/a', properties: {}, $defs: { a: {} } }, "the schema's properties: is not kept beside $ref"],
  [{ anyOf: [true], type: 'object' }, "the schema's type: is not kept beside anyOf"],
  [{ anyOf: [true], oneOf: [true] }, "the schema's oneOf: is not kept beside anyOf"],
  [{ allOf: [true], required: [] }, "the schema's required: is not kept beside allOf"],
  [{ enum: ['a'], pattern: 'a' }, "the schema's pattern: is not kept beside enum"],
  [{ const: 'a', enum: ['a'] }, "the schema's enum: is not kept beside const"],
  [{ $ref: '#/$defs/a', unevaluatedProperties: false, $defs: { a: {} } }, 'is not kept beside $ref'],
  [{ anyOf: [{ type: 'object' }], unevaluatedProperties: false }, 'is not kept beside anyOf'],
  [{ allOf: [true, true] }, "the schema's allOf: of more than one schema is not kept"],
  [{ anyOf: [] }, "the schema's anyOf: must be a list that is not empty"],
  [{ oneOf: {} }, "the schema's oneOf: must be a list that is not empty"],
  [{ enum: [] }, "the schema's enum: must be a list that is not empty"],
  [{ enum: 'ab' }, "the schema's enum: must be a list that is not empty"],
  [{ type: 'string', enum: [1, null] }, "the schema's enum: holds no value of its type"],
  [{ type: ['integer', 'null'], const: 1.5 }, "the schema's const: holds no value of its type"],
  // Sizes.
  [deep(201), 'the schema is too large'],
  [{ anyOf: Array.from({ length: 10_001 }, () => true) }, "the schema's anyOf.9999: the schema is too large"],
]

describe('a JSON Schema', () => {
  it.each(REFUSED)('%j is refused', (schema, reason) => {
    expect(() => keeperOf(schema)).toThrow(reason)
  })

  it.each([
    [
      'anything',
      true,
      ['{}', '[1, "a", {"b": null}]', '"é\\n\\u00e9\\ud83d"', '-0.5e-3', 'true'],
      ['', '[1,2]', '{"a":1}', "'a'", 'nul', '01', '"\n"', '"\\x"', ' 1'],
    ],
    [
      'annotations',
      { title: 'A', description: 'b', default: 1, examples: [], $id: 'x', $comment: '', readOnly: true },
      ['1', '[]'],
      [''],
    ],
    ['keywords that ask for nothing', { minProperties: 0, uniqueItems: false, additionalItems: true }, ['1', '{}'], []],
    ['unknown formats', { type: 'string', format: 'password' }, ['"x"', '""'], ['1']],
    [
      'types',
      { type: ['integer', 'null', 'boolean'] },
      ['1', '-20', 'null', 'true', 'false'],
      ['1.5', '"a"', '[]', 'nulltrue'],
    ],
    ['a type that is not said', { maxLength: 2 }, ['"ab"', '"é😀"', '""'], ['"abc"', '1']],
    ['lengths', { type: 'string', minLength: 2, maxLength: 3 }, ['"ab"', '"😀😀😀"'], ['"a"', '"abcd"', '"\\n"']],
    ['a length of none', { type: 'string', maxLength: 0 }, ['""'], ['"a"']],
    ['patterns', { pattern: '^[^x]+@\\w$' }, ['"é@b"'], ['"x@b"', '"""@b"', '"\\@b"', '"\n@b"']],
    ['dates', { format: 'date' }, ['"2024-02-30"'], ['"2024-13-01"', '"24-01-01"', '"2024-1-1"']],
    ['uuids', { format: 'uuid' }, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']],
    [
      'durations',
      { format: 'duration' },
      ['"P3D"', '"P2W"', '"P1DT2H3M"', '"PT5M10S"'],
      ['"P"', '"PT"', '"P1DT"', '3'],
    ],
    [
      'constants',
      { const: { a: [1, 'x"', null], b: {} } },
      ['{"a": [1, "x\\"", null], "b": {}}'],
      ['{"a":[1,"x\\"",null],"b":{}}', '{}'],
    ],
    [
      'enums',
      { enum: ['a', 'ab', 1, 1.5, null, true, 'é\n', 1e21, 'a'] },
      ['"a"', '"ab"', '1', '1.5', 'null', 'true', '"é\\n"', '1e+21'],
      ['"', '"b"', '"abc"', '15', 'a'],
    ],
    [
      'enums of a type',
      { type: ['string', 'integer'], enum: ['a', 1, 1.5, null, 2.0] },
      ['"a"', '1', '2'],
      ['1.5', 'null'],
    ],
    [
      'numbers within bounds',
      { type: 'number', minimum: 0.25, exclusiveMaximum: 2 },
      ['0.5', '1', '0.25', '1.99', '1.5'],
      ['0.2', '2', '2.0'],
    ],
    [
      'integers within bounds',
      { type: 'integer', exclusiveMinimum: -1, maximum: 10 },
      ['0', '10'],
      ['-1', '11', '1.0'],
    ],
    ['lists', { items: { type: 'integer' } }, ['[]', '[1]', '[1, 2, 3]'], ['[1,2]', '["a"]', '[1, ]', '[, 1]']],
    [
      'lists of some length',
      { items: { const: 'a' }, minItems: 2, maxItems: 3 },
      ['["a", "a"]', '["a", "a", "a"]'],
      ['[]', '["a"]', '["a", "a", "a", "a"]'],
    ],
    ['lists of at least one', { items: { const: 1 }, minItems: 1 }, ['[1]', '[1, 1]'], ['[]']],
    ['lists of at most one', { items: { const: 1 }, maxItems: 1 }, ['[]', '[1]'], ['[1, 1]']],
    ['lists of none', { items: { const: 1 }, maxItems: 0 }, ['[]'], ['[1]']],
    ['no items', { type: 'array', items: false }, ['[]'], ['[1]']],
    ['no items that others leave', { type: 'array', unevaluatedItems: false }, ['[]'], ['[1]']],
    [
      'tuples',
      { prefixItems: [{ type: 'integer' }, { type: 'null' }], items: false },
      ['[1, null]'],
      ['[1]', '[]', '[1, null, 2]'],
    ],
    [
      'maps',
      { type: 'object', additionalProperties: { type: 'integer' } },
      ['{}', '{"a": 1}', '{"a\\"": 1, "": 2}'],
      ['{"a": "b"}', '{a: 1}', '{"a":1}'],
    ],
    ['objects of any kind', { type: 'object' }, ['{}', '{"a": [{}]}'], ['[]']],
    ['objects of none', { type: 'object', additionalProperties: false }, ['{}'], ['{"a": 1}']],
    ['objects of none that others leave', { type: 'object', unevaluatedProperties: false }, ['{}'], ['{"a": 1}']],
    ['maps of what others leave', { type: 'object', unevaluatedProperties: { const: 1 } }, ['{"a": 1}'], ['{"a": 2}']],
    [
      'names that need escapes',
      {
        properties: { 'a"\\\n\u0001é😀': { const: 1 }, '': { const: 2 }, ['__proto__']: { const: 4 } },
        required: [''],
      },
      ['{"": 2}', '{"": 2, "__proto__": 4}', '{"a\\"\\\\\\n\\u0001é😀": 1, "": 2}'],
      ['{"a"": 1, "": 2}', '{}'],
    ],
    [
      'alternatives',
      { anyOf: [{ type: 'null' }, { const: 'x' }, { type: 'array', items: { const: 1 } }] },
      ['null', '"x"', '[1]'],
      ['1'],
    ],
    ['one of some', { oneOf: [{ const: 1 }, { type: 'integer' }] }, ['1', '2'], ['"a"']],
    ['all of one', { allOf: [{ $ref: '#/$defs/a' }], default: 5, $defs: { a: { const: 5 } } }, ['5'], ['6']],
    [
      'itself',
      {
        properties: { value: { type: 'integer' }, next: { anyOf: [{ $ref: '#' }, { type: 'null' }] } },
        required: ['value', 'next'],
      },
      ['{"value": 1, "next": null}', '{"value": 1, "next": {"value": 2, "next": null}}'],
      ['{"value": 1, "next": {}}'],
    ],
    [
      'trees',
      { $ref: '#/definitions/node', definitions: { node: { type: 'array', items: { $ref: '#/definitions/node' } } } },
      ['[]', '[[], [[[]], []]]', '['.repeat(200) + ']'.repeat(200)],
      ['[[]', '[1]'],
    ],
    [
      'names of references',
      {
        prefixItems: [
          '#/$defs/a~1b',
          '#/$defs/c~0d',
          '#/$defs/e%20f',
          '#/$defs/%C3%A9',
          '#/$defs/~01',
          '#/$defs/100%',
          '#/$defs/',
        ].map(($ref) => ({ $ref })),
        $defs: {
          'a/b': { const: 1 },
          'c~d': { const: 2 },
          'e f': { const: 3 },
          é: { const: 4 },
          '~1': { const: 5 },
          '100%': { const: 6 },
          '': { const: 7 },
        },
      },
      ['[1, 2, 3, 4, 5, 6, 7]'],
      ['[1, 2, 3, 4, 5, 6, 1]'],
    ],
    ['references into lists', { anyOf: [{ const: 1 }, { items: { $ref: '#/anyOf/0' } }] }, ['1', '[1, 1]'], ['[2]']],
    ['as deep as may be', deep(200), ['['.repeat(200) + ']'.repeat(200)], ['[']],
  ])('%s', (_, schema, yes, no) => {
    const keeper = keeperOf(schema)
    expect(yes.filter((text) => !accepts(keeper, text))).toEqual([])
    expect(no.filter((text) => accepts(keeper, text))).toEqual([])
  })

  it('asks for the properties that are required, in their order', () => {
    const names = ['a', 'b', 'c', 'd']
    const subsets = Array.from({ length: 16 }, (_, mask) => names.filter((_name, i) => (mask >> i) & 1))
    const textOf = (some: readonly string[]): string => `{${some.map((name) => `"${name}": 1`).join(', ')}}`
    for (const required of subsets) {
      const keeper = keeperOf({ properties: Object.fromEntries(names.map((name) => [name, { const: 1 }])), required })
      for (const some of subsets) {
        expect(accepts(keeper, textOf(some))).toBe(required.every((name) => some.includes(name)))
        if (some.length < 2) continue
        expect(accepts(keeper, textOf(some.toReversed()))).toBe(false)
      }
      const all = ['{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}', '{"a": 1, "a": 1, "b": 1, "c": 1, "d": 1}', '{, "a": 1}']
      expect(all.filter((text) => accepts(keeper, text))).toEqual([])
    }
  })

  it('of thousands of properties, strings and references is built in no time', () => {
    const names = Array.from({ length: 2000 }, (_, i) => `property_${i}`)
    const texts = Array.from({ length: 5000 }, (_, i) => `some value ${i}`)
    const began = performance.now()
    const optional = keeperOf({
      properties: { ...Object.fromEntries(names.map((name) => [name, { type: 'string' }])), last: { enum: texts } },
    })
    const needed = keeperOf({
      properties: Object.fromEntries(names.map((name) => [name, { $ref: `#/$defs/${name}` }])),
      required: names,
      $defs: Object.fromEntries(names.map((name, i) => [name, { const: i }])),
    })
    expect(accepts(optional, '{"property_7": "x", "property_1999": "", "last": "some value 4711"}')).toBe(true)
    expect(accepts(optional, '{"property_7": "x", "property_6": ""}')).toBe(false)
    expect(accepts(needed, `{${names.map((name, i) => `"${name}": ${i}`).join(', ')}}`)).toBe(true)
    expect(performance.now() - began).toBeLessThan(6000)
  })
})
