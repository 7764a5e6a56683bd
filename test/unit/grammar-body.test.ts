import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decodeChat, decodeCompletion } from '../../gateway/protocols/decode.js'
import { chatCall } from '../../gateway/protocols/grpc/decode.js'
import { ChatRequest } from '../../proto/gen/edgeshift/v1/gateway.js'
import { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { fakeServices } from '../support/fake-services.js'
import { errorOf, refusal } from '../support/gateway-errors.js'

const services = fakeServices()
const origin = { id: 'r', tenant: '' }
const messages = [{ role: 'user', content: 'hi' }]

const chat = (fields: object) => decodeChat({ model: 'fake', messages, ...fields }, origin, services).requests[0]
const completion = (fields: object) =>
  decodeCompletion({ model: 'fake', prompt: 'a', ...fields }, origin, services).requests[0]

/** The grammar of a chat that came over the wire by gRPC. */
function overGrpc(grammar: Grammar): Grammar | undefined {
  const request = ChatRequest.fromPartial({ model: 'fake', messages, options: { grammar } })
  const received = ChatRequest.decode(ChatRequest.encode(request).finish())
  return chatCall(received, origin, services).requests[0].grammar
}

const schemaOf = (jsonSchema: string): Grammar => ({ kind: { $case: 'jsonSchema', jsonSchema } })
const regexOf = (regex: string): Grammar => ({ kind: { $case: 'regex', regex } })
const ebnfOf = (ebnf: string): Grammar => ({ kind: { $case: 'ebnf', ebnf } })
const choiceOf = (...texts: string[]): Grammar => ({ kind: { $case: 'choice', choice: { texts } } })

const named = (schema: unknown, more: object = {}) => ({
  response_format: { type: 'json_schema', json_schema: { name: 'answer', schema, ...more } },
})
const outputs = (fields: object) => ({ structured_outputs: fields })

/** So many levels of objects. */
const nested = (levels: number): unknown => JSON.parse('{"a":'.repeat(levels - 1) + '{}' + '}'.repeat(levels - 1))
/** A schema whose JSON text has so many characters. */
const sized = (characters: number) => ({ title: 'x'.repeat(characters - '{"title":""}'.length) })

const MOST = 65_536
const most = 'x'.repeat(MOST)

describe('every form', () => {
  it.each<[string, object, Grammar | undefined]>([
    ['nothing', {}, undefined],
    ['null', { response_format: null, structured_outputs: null, guided_json: null, guided_regex: null }, undefined],
    ['text', { response_format: { type: 'text' } }, undefined],
    ['text beside a grammar', { response_format: { type: 'text' }, guided_regex: 'a' }, regexOf('a')],
    ['a JSON object', { response_format: { type: 'json_object' } }, schemaOf('{"type":"object"}')],
    ['a schema', named({ type: 'string' }), schemaOf('{"type":"string"}')],
    ['a strict schema', named({}, { strict: true, description: 'd' }), schemaOf('{}')],
    ['a schema that is not strict', named({}, { strict: false }), schemaOf('{}')],
    ['a schema with absent marks', named({}, { strict: null, description: null }), schemaOf('{}')],
    ['a schema that takes everything', named(true), schemaOf('true')],
    ['a schema that takes nothing', named(false), schemaOf('false')],
    ['guided_json', { guided_json: { b: 1, a: [] } }, schemaOf('{"b":1,"a":[]}')],
    ['guided_json as text', { guided_json: ' {"b": 1.0,\n"a": []} ' }, schemaOf('{"b":1,"a":[]}')],
    ['guided_json as a boolean', { guided_json: 'true' }, schemaOf('true')],
    ['guided_regex', { guided_regex: '[ab]+(' }, regexOf('[ab]+(')],
    ['guided_choice', { guided_choice: ['yes', 'no', 'yes'] }, choiceOf('yes', 'no', 'yes')],
    ['guided_grammar', { guided_grammar: 'root ::= "é"' }, ebnfOf('root ::= "é"')],
    ['structured_outputs.json', outputs({ json: { a: '😀' } }), schemaOf('{"a":"😀"}')],
    ['structured_outputs.json as text', outputs({ json: '{"a": "\\ud83d\\ude00"}' }), schemaOf('{"a":"😀"}')],
    ['structured_outputs.regex', outputs({ regex: 'a', json: null, choice: null, json_object: null }), regexOf('a')],
    ['structured_outputs.choice', outputs({ choice: ['a'] }), choiceOf('a')],
    ['structured_outputs.grammar', outputs({ grammar: 'root ::= "a"' }), ebnfOf('root ::= "a"')],
    ['structured_outputs.json_object', outputs({ json_object: true }), schemaOf('{"type":"object"}')],
    ['neutral beside it', { guided_regex: 'a', min_tokens: 0, ignore_eos: false }, regexOf('a')],
    ['what ends it', { guided_regex: 'a', stop: ['b'], max_tokens: 3, stop_token_ids: [1] }, regexOf('a')],
  ])('%s', (_name, fields, grammar) => {
    expect(chat(fields).grammar).toEqual(grammar)
    expect(completion(fields).grammar).toEqual(grammar)
  })

  it('holds for every prompt of a completion', () => {
    const body = { model: 'fake', prompt: ['a', 'b'], guided_regex: 'a' }
    const { requests } = decodeCompletion(body, origin, services)
    expect(requests.map(({ grammar }) => grammar)).toEqual([regexOf('a'), regexOf('a')])
  })

  it('is absent where none is asked for', () => {
    expect(chat({})).not.toHaveProperty('grammar')
  })

  it('keeps a key named __proto__', () => {
    const body: unknown = JSON.parse('{"guided_json":{"properties":{"__proto__":{"type":"null"}}}}')
    expect(chat(Object(body)).grammar).toEqual(schemaOf('{"properties":{"__proto__":{"type":"null"}}}'))
  })
})

describe('up to the limits', () => {
  it.each<[string, object]>([
    ['regex', { guided_regex: most }],
    ['rules', { guided_grammar: most }],
    ['schema', { guided_json: sized(MOST) }],
    ['schema as text', { guided_json: JSON.stringify(sized(MOST)) }],
    ['nesting', named(nested(64))],
    ['choices', { guided_choice: Array.from({ length: 256 }, () => 'x'.repeat(256)) }],
    ['one choice', { guided_choice: [most] }],
  ])('%s', (_name, fields) => {
    expect(chat(fields).grammar).toBeDefined()
  })
})

describe('refused', () => {
  const half = '\ud800'
  const format = 'response_format'
  const inFormat = 'response_format.json_schema.schema'
  const rows: [string, object, RegExp][] = [
    // Of two forms the second.
    ['guided_json', { ...named({}), guided_json: {} }, /cannot be combined with response_format: an answer/],
    ['guided_regex', { response_format: { type: 'json_object' }, guided_regex: 'a' }, /with response_format/],
    ['structured_outputs.regex', { ...named({}), ...outputs({ regex: 'a' }) }, /with response_format/],
    ['guided_choice', { ...outputs({ regex: 'a' }), guided_choice: ['a'] }, /with structured_outputs.regex/],
    ['guided_grammar', { guided_json: {}, guided_grammar: 'a' }, /with guided_json/],
    ['structured_outputs.regex', outputs({ regex: 'a', json: {} }), /with structured_outputs.json/],
    ['structured_outputs.json_object', outputs({ json_object: true, choice: ['a'] }), /structured_outputs.choice/],
    // What the grammar decides.
    ['min_tokens', { guided_regex: 'a', min_tokens: 1 }, /with guided_regex: the grammar says where/],
    ['ignore_eos', { ...named({}), ignore_eos: true }, /with response_format: the grammar says where/],
    // Shapes.
    [format, { response_format: 'json' }, /expected object/],
    [`${format}.type`, { response_format: {} }, /expected text, json_object or json_schema/],
    [`${format}.type`, { response_format: { type: 'xml' } }, /expected text, json_object or json_schema/],
    [`${format}.json_schema`, { response_format: { type: 'json_schema' } }, /is required/],
    [
      `${format}.json_schema.name`,
      { response_format: { type: 'json_schema', json_schema: { schema: {} } } },
      /required/,
    ],
    [`${format}.json_schema.name`, named({}, { name: '' }), /name: /],
    [`${format}.json_schema.strict`, named({}, { strict: 'yes' }), /strict: /],
    [inFormat, { response_format: { type: 'json_schema', json_schema: { name: 'a' } } }, /is required/],
    [inFormat, named('{}'), /an object or a boolean/],
    [inFormat, named(null), /an object or a boolean/],
    [inFormat, named([]), /an object or a boolean/],
    ['guided_json', { guided_json: 3 }, /an object or a boolean/],
    ['guided_json', { guided_json: '[{}]' }, /an object or a boolean/],
    ['guided_json', { guided_json: '"a"' }, /an object or a boolean/],
    ['guided_json', { guided_json: 'null' }, /an object or a boolean/],
    ['guided_json', { guided_json: '' }, /is not valid JSON/],
    ['guided_json', { guided_json: "{'a': 1}" }, /is not valid JSON/],
    ['guided_regex', { guided_regex: 3 }, /expected string/],
    ['guided_regex', { guided_regex: '' }, /at least 1|>=1/],
    ['guided_grammar', { guided_grammar: ['a'] }, /expected string/],
    ['guided_choice', { guided_choice: 'a' }, /array of strings/],
    ['guided_choice', { guided_choice: [] }, /must not be empty/],
    ['guided_choice[1]', { guided_choice: ['a', ''] }, /must not be empty/],
    ['guided_choice[1]', { guided_choice: ['a', 1] }, /must be a string/],
    ['structured_outputs', outputs({}), /must have one of/],
    ['structured_outputs', { structured_outputs: '{}' }, /expected object/],
    ['structured_outputs.regex', outputs({ regex: '' }), />=1/],
    ['structured_outputs.choice[0]', outputs({ choice: [''] }), /must not be empty/],
    ['structured_outputs.json', outputs({ json: '{' }), /is not valid JSON/],
    ['structured_outputs.json_object', outputs({ json_object: false }), /expected true/],
    // Limits.
    ['guided_regex', { guided_regex: `${most}x` }, /65536/],
    ['guided_grammar', { guided_grammar: `${most}x` }, /65536/],
    ['structured_outputs.regex', outputs({ regex: `${most}x` }), /65536/],
    ['guided_json', { guided_json: sized(MOST + 1) }, /has 65537 characters, more than the limit of 65536/],
    ['guided_json', { guided_json: `${' '.repeat(MOST)}{}` }, /has 65538 characters/],
    ['guided_json', { guided_json: `[${'1e20,'.repeat(13_000)}1]`.replace(/.*/, '{"enum":$&}') }, /characters, more/],
    [inFormat, named(nested(65)), /nested deeper than 64 levels/],
    ['guided_json', { guided_json: nested(65) }, /nested deeper than 64 levels/],
    ['guided_json', { guided_json: '{"a":'.repeat(10_000) + '{}' + '}'.repeat(10_000) }, /nested deeper/],
    ['guided_choice', { guided_choice: Array.from({ length: 257 }, () => 'a') }, /has 257 strings, more than .* 256/],
    ['guided_choice', { guided_choice: [most, 'a'] }, /has 65537 characters, more than the limit of 65536/],
    // What has no UTF-8 form, or no value.
    ['guided_regex', { guided_regex: half }, /unpaired surrogate/],
    ['guided_grammar', { guided_grammar: half }, /unpaired surrogate/],
    ['guided_choice[1]', { guided_choice: ['a', half] }, /unpaired surrogate/],
    ['guided_json', { guided_json: { const: half } }, /unpaired surrogate/],
    ['guided_json', { guided_json: '{"const": "\\ud800"}' }, /unpaired surrogate/],
    [inFormat, named({ properties: { [half]: {} } }), /unpaired surrogate/],
    ['guided_json', { guided_json: '{"enum": [1e999]}' }, /number that is too large/],
  ]
  const cases = rows.map(([param, fields, message]) => ({
    name: `${param} (${message.source})`,
    param,
    fields,
    message,
  }))
  it.each(cases)('$name', ({ param, fields, message }) => {
    for (const decode of [chat, completion]) {
      const error = errorOf(() => decode(fields))
      expect(error).toMatchObject({ code: 'invalid_request', param })
      expect(error.message).toContain(param)
      expect(error.message).toMatch(message)
    }
  })

  it.each<[string, object]>([
    ['response_format.surprise', { response_format: { type: 'text', surprise: 1 } }],
    ['response_format.json_schema.surprise', named({}, { surprise: 1 })],
    ['structured_outputs.whitespace_pattern', outputs({ json: {}, whitespace_pattern: ' ' })],
    ['guided_whitespace_pattern', { guided_whitespace_pattern: ' ' }],
  ])('%s is not known', (param, fields) => {
    expect(errorOf(() => chat(fields))).toMatchObject({ code: 'unsupported_parameter', param })
  })

  it.each<[string, Grammar]>([
    ['structured_outputs', {}],
    ['structured_outputs.json', schemaOf('')],
    ['structured_outputs.regex', regexOf('')],
    ['structured_outputs.grammar', ebnfOf('')],
    ['structured_outputs.choice', choiceOf()],
    ['structured_outputs.choice[0]', choiceOf('')],
  ])('%s over gRPC', (param, grammar) => {
    expect(errorOf(() => overGrpc(grammar))).toMatchObject({ code: 'invalid_request', param })
  })
})

describe('the same wish', () => {
  const text = fc.string({ unit: 'grapheme', minLength: 1 })
  const schema = fc.oneof(fc.dictionary(text, fc.jsonValue()), fc.boolean())
  const wish = fc.oneof(
    schema.map((json) => ({
      forms: [
        named(json),
        named(json, { strict: true }),
        ...[json, JSON.stringify(json), JSON.stringify(json, null, 2)].flatMap((value) => [
          { guided_json: value },
          outputs({ json: value }),
        ]),
      ],
      message: schemaOf(JSON.stringify(json, null, 1)),
    })),
    text.map((regex) => ({ forms: [{ guided_regex: regex }, outputs({ regex })], message: regexOf(regex) })),
    text.map((grammar) => ({ forms: [{ guided_grammar: grammar }, outputs({ grammar })], message: ebnfOf(grammar) })),
    fc.array(text, { minLength: 1 }).map((choice) => ({
      forms: [{ guided_choice: choice }, outputs({ choice })],
      message: choiceOf(...choice),
    })),
    fc.constant({
      forms: [{ response_format: { type: 'json_object' } }, outputs({ json_object: true }), named({ type: 'object' })],
      message: schemaOf('{"type":"object"}'),
    }),
  )

  it('is the same grammar in every form and over every protocol', () => {
    fc.assert(
      fc.property(wish, ({ forms, message }) => {
        const expected = overGrpc(message)
        expect(expected?.kind?.$case).toBe(message.kind?.$case)
        for (const fields of forms) {
          expect(chat(fields).grammar).toEqual(expected)
          expect(completion(fields).grammar).toEqual(expected)
        }
      }),
      { numRuns: 300 },
    )
  })

  it('means what was said', () => {
    fc.assert(
      fc.property(schema, (json) => {
        const { kind } = chat({ guided_json: json }).grammar ?? {}
        expect(kind?.$case === 'jsonSchema' && JSON.parse(kind.jsonSchema)).toEqual(JSON.parse(JSON.stringify(json)))
      }),
    )
  })

  it('asked for in two forms is refused', () => {
    const single = fc.constantFrom<object>(
      named({}),
      { guided_json: {} },
      { guided_regex: 'a' },
      { guided_choice: ['a'] },
      { guided_grammar: 'a' },
      outputs({ json: {} }),
    )
    fc.assert(
      fc.property(fc.uniqueArray(single, { minLength: 2 }), (forms) => {
        const error = errorOf(() => chat(Object.assign({}, ...forms)))
        expect(error.message).toContain('cannot be combined with')
      }),
    )
  })
})

it('any value in the fields is decoded or refused by a GatewayError', () => {
  const value = fc.jsonValue({ maxDepth: 4 })
  const fields = fc.record(
    {
      response_format: fc.oneof(value, fc.record({ type: fc.constant('json_schema'), json_schema: value })),
      structured_outputs: fc.oneof(value, fc.record({ json: value, choice: value }, { requiredKeys: [] })),
      guided_json: value,
      guided_choice: fc.oneof(value, fc.array(value)),
      guided_regex: value,
    },
    { requiredKeys: [] },
  )
  fc.assert(
    fc.property(fields, (candidate) => {
      const code = refusal(() => chat(candidate))?.code
      expect([undefined, 'invalid_request', 'unsupported_parameter']).toContain(code)
    }),
    { numRuns: 300 },
  )
})
