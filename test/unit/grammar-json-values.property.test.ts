import { Ajv2020 } from 'ajv/dist/2020.js'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { accepts, randomText, tinyKeeper } from '../support/grammar-walk.js'

const keeperOf = (schema: unknown): ReturnType<typeof tinyKeeper> =>
  tinyKeeper({ $case: 'jsonSchema', jsonSchema: JSON.stringify(schema) })

/** As Python's json.dumps(value, ensure_ascii=False). */
function dumps(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(dumps).join(', ')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  return `{${Object.entries(value)
    .map(([name, member]) => `${JSON.stringify(name)}: ${dumps(member)}`)
    .join(', ')}}`
}

const KEPT = /^-?\d{1,15}(?:\.\d{1,16})?(?:e[+-]?\d{1,2})?$/

/** Numbers with too many digits become others. */
function withKeptNumbers(value: unknown): unknown {
  if (typeof value === 'number') return KEPT.test(String(value)) ? value : 0.5
  if (Array.isArray(value)) return value.map(withKeptNumbers)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, withKeptNumbers(member)]))
}

describe('JSON of any kind', () => {
  const anything = keeperOf(true)
  const json = fc.oneof(fc.jsonValue({ stringUnit: 'binary' }), fc.jsonValue()).map(withKeptNumbers)

  it('follows the schema true, and what was cut off does not', () => {
    fc.assert(
      fc.property(json, (value) => {
        const text = dumps(value)
        expect(accepts(anything, text)).toBe(true)
        const isCut = typeof value === 'object' || typeof value === 'string'
        expect(isCut && accepts(anything, text.slice(0, -1))).toBe(false)
        expect(accepts(anything, `${text},`)).toBe(false)
      }),
      { numRuns: 500 },
    )
  })

  it('follows its own const', () => {
    fc.assert(
      fc.property(json, json, (value, other) => {
        const keeper = keeperOf({ const: value })
        expect(accepts(keeper, dumps(value))).toBe(true)
        expect(accepts(keeper, dumps(other))).toBe(dumps(other) === dumps(value))
      }),
      { numRuns: 200 },
    )
  })

  it('ends as JSON in every walk', () => {
    fc.assert(
      fc.property(fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })), (draws) => {
        const text = randomText(anything, () => draws.next().value as number)
        const value: unknown = JSON.parse(text ?? 'null')
        // Names that come twice are read once.
        expect(accepts(anything, dumps(withKeptNumbers(value)))).toBe(true)
      }),
      { numRuns: 100 },
    )
  })
})

/** As pydantic v2 writes them: model_json_schema(). */
const INVOICE = {
  $defs: {
    Address: {
      description: 'Where something is sent.',
      properties: {
        street: { title: 'Street', type: 'string' },
        city: { maxLength: 40, minLength: 1, title: 'City', type: 'string' },
        zip_code: { pattern: '^\\d{5}$', title: 'Zip Code', type: 'string' },
        country: { default: 'DE', enum: ['DE', 'FR', 'IT'], title: 'Country', type: 'string' },
      },
      required: ['street', 'city', 'zip_code'],
      title: 'Address',
      type: 'object',
    },
    Currency: { enum: ['EUR', 'USD'], title: 'Currency', type: 'string' },
    Item: {
      additionalProperties: false,
      properties: {
        sku: { format: 'uuid', title: 'Sku', type: 'string' },
        quantity: { exclusiveMinimum: 0, maximum: 99, title: 'Quantity', type: 'integer' },
        price: { minimum: 0.01, title: 'Price', type: 'number' },
        discount: {
          anyOf: [{ exclusiveMaximum: 1, minimum: 0, type: 'number' }, { type: 'null' }],
          default: null,
          title: 'Discount',
        },
      },
      required: ['sku', 'quantity', 'price'],
      title: 'Item',
      type: 'object',
    },
  },
  properties: {
    number: { description: "The invoice's number", examples: ['R-1'], title: 'Number', type: 'string' },
    issued: { format: 'date', title: 'Issued', type: 'string' },
    paid_at: { anyOf: [{ format: 'date-time', type: 'string' }, { type: 'null' }], default: null, title: 'Paid At' },
    billing: { $ref: '#/$defs/Address' },
    shipping: { anyOf: [{ $ref: '#/$defs/Address' }, { type: 'null' }], default: null },
    currency: { $ref: '#/$defs/Currency', default: 'EUR' },
    items: { items: { $ref: '#/$defs/Item' }, maxItems: 20, minItems: 1, title: 'Items', type: 'array' },
    tags: { additionalProperties: { type: 'string' }, default: {}, title: 'Tags', type: 'object' },
    size: {
      anyOf: [
        { maxItems: 2, minItems: 2, prefixItems: [{ type: 'integer' }, { type: 'number' }], type: 'array' },
        { type: 'null' },
      ],
      title: 'Size',
    },
  },
  required: ['number', 'issued', 'billing', 'items', 'size'],
  title: 'Invoice',
  type: 'object',
}

/** A tree, and unions that a name tells apart. */
const PLAN = {
  $defs: {
    Search: {
      properties: {
        kind: { const: 'search', title: 'Kind', type: 'string' },
        query: { title: 'Query', type: 'string' },
        limit: { anyOf: [{ type: 'integer' }, { type: 'null' }], default: 10, title: 'Limit' },
      },
      required: ['kind', 'query'],
      title: 'Search',
      type: 'object',
    },
    Answer: {
      properties: {
        kind: { const: 'answer', default: 'answer', title: 'Kind', type: 'string' },
        confidence: { maximum: 1.0, minimum: 0.0, title: 'Confidence', type: 'number' },
        extra: { additionalProperties: true, title: 'Extra', type: 'object' },
        raw: { title: 'Raw' },
      },
      required: ['confidence', 'raw'],
      title: 'Answer',
      type: 'object',
    },
    Step: {
      properties: {
        thought: { title: 'Thought', type: 'string' },
        action: {
          discriminator: { mapping: { answer: '#/$defs/Answer', search: '#/$defs/Search' }, propertyName: 'kind' },
          oneOf: [{ $ref: '#/$defs/Search' }, { $ref: '#/$defs/Answer' }],
          title: 'Action',
        },
        children: { default: [], items: { $ref: '#/$defs/Step' }, title: 'Children', type: 'array' },
      },
      required: ['thought', 'action'],
      title: 'Step',
      type: 'object',
    },
  },
  $ref: '#/$defs/Step',
}

const ADDRESS = { street: 'Straße "1"', city: 'Köln', zip_code: '50667' }
const ITEM = { sku: '123e4567-e89b-12d3-a456-426614174000', quantity: 3, price: 2.5, discount: null }

describe.each([
  [
    'an invoice',
    INVOICE,
    [
      {
        number: 'R\n1',
        issued: '2024-02-29',
        billing: ADDRESS,
        items: [ITEM, { ...ITEM, discount: 0.25 }],
        size: null,
      },
      {
        ...{
          number: '',
          issued: '1999-12-31',
          paid_at: '2000-01-01T00:00:00Z',
          billing: { ...ADDRESS, country: 'FR' },
        },
        ...{ shipping: ADDRESS, currency: 'USD', items: [ITEM], tags: { a: 'b', 'c d': '' }, size: [1, 2.5] },
      },
    ],
    [
      { number: 'R', issued: '2024-02-29', billing: ADDRESS, items: [], size: null },
      { number: 'R', issued: '2024-02-29', billing: { ...ADDRESS, zip_code: '5066' }, items: [ITEM], size: null },
      { number: 'R', issued: '2024-02-29', billing: ADDRESS, items: [{ ...ITEM, quantity: 0 }], size: null },
      { number: 'R', issued: '2024-02-29', billing: ADDRESS, items: [{ ...ITEM, price: 0.001 }], size: null },
      { number: 'R', issued: '2024-02-29', billing: ADDRESS, items: [ITEM] },
    ],
  ],
  [
    'a plan',
    PLAN,
    [
      { thought: 'é', action: { kind: 'search', query: 'x' } },
      {
        ...{ thought: '', action: { kind: 'answer', confidence: 0.5, extra: { a: [1, { b: null }] }, raw: [true] } },
        children: [{ thought: 'b', action: { confidence: 1, raw: null }, children: [] }],
      },
    ],
    [
      { thought: 'é', action: { kind: 'find', query: 'x' } },
      { thought: 'é', action: { kind: 'answer', confidence: 1.5, raw: 1 } },
      { thought: 'é', action: { kind: 'answer', confidence: 1, raw: 1 }, children: [{}] },
    ],
  ],
])('%s as pydantic describes it', (_, schema, yes, no) => {
  const keeper = keeperOf(schema)

  it('is served', () => {
    expect(yes.filter((value) => !accepts(keeper, dumps(value)))).toEqual([])
    expect(no.filter((value) => accepts(keeper, dumps(value)))).toEqual([])
  })

  it('is followed by every walk that ends', () => {
    const follows = new Ajv2020({ strict: false, validateFormats: false }).compile(schema)
    let ended = 0
    fc.assert(
      fc.property(fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })), (draws) => {
        const text = randomText(keeper, () => draws.next().value as number)
        if (text === undefined) return
        ended++
        expect([text, follows(JSON.parse(text))]).toEqual([text, true])
      }),
      { numRuns: 60 },
    )
    expect(ended).toBeGreaterThan(20)
  })
})
