import { Ajv2020 } from 'ajv/dist/2020.js'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GrammarError } from '../../engine/grammar/grammar-error.js'
import { randomText, tinyKeeper } from '../support/grammar-walk.js'

const RUNS = Number(process.env['GRAMMAR_RUNS'] ?? 300)
const fraction = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })
const FORMATS = ['date', 'time', 'date-time', 'duration', 'email', 'hostname', 'ipv4', 'uri', 'uuid', 'password']
const PATTERNS = ['^a+$', 'x|yz', '^[A-Z]{2}\\d+$', '[^a-c]', '^.{2,4}$', '\\w+@\\w+\\.(de|fr)', '^\\S+ \\D$', 'é?ü']

const optional = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined })
const small = fc.nat(6)
const decimal = fc.integer({ min: -5000, max: 5000 }).chain((n) => fc.constantFrom(n, n / 10, n / 1000))
/** Without names that trip the validator itself. */
const json = fc
  .jsonValue({ maxDepth: 2 })
  .map((value) => JSON.parse(JSON.stringify(value)) as unknown)
  .filter((value) => !/"(?:toString|valueOf|__proto__|constructor|hasOwnProperty)"/.test(JSON.stringify(value)))
const name = fc.stringMatching(/^[A-Za-zäé_][A-Za-z0-9 _-]{0,6}$/)

const { schema } = fc.letrec<{ schema: unknown }>((tie) => ({
  schema: fc.oneof(
    { maxDepth: 3, depthSize: 'small' },
    fc.constantFrom<unknown>(true, {}, { type: 'boolean' }, { type: 'null' }, { type: 'number' }, { type: 'integer' }),
    fc.record({ type: fc.constant('string'), pattern: fc.constantFrom(...PATTERNS) }),
    fc.record({ type: fc.constant('string'), format: fc.constantFrom(...FORMATS) }),
    fc.record({ type: fc.constant('string'), minLength: optional(small), maxLength: optional(small) }),
    fc.record({
      type: fc.constant('integer'),
      minimum: optional(fc.integer()),
      exclusiveMaximum: optional(fc.double({ noNaN: true, min: -1e12, max: 1e12 })),
    }),
    fc.record({
      type: fc.constant('integer'),
      exclusiveMinimum: optional(fc.integer({ min: -200, max: 200 })),
      maximum: optional(fc.integer({ min: -200, max: 2000 })),
    }),
    fc.record({
      type: fc.constant('number'),
      minimum: optional(decimal),
      maximum: optional(decimal),
      exclusiveMinimum: optional(decimal),
      exclusiveMaximum: optional(decimal),
    }),
    fc.record({ enum: fc.array(json, { minLength: 1, maxLength: 4 }) }),
    fc.record({ const: json }),
    fc.record({ anyOf: fc.array(tie('schema'), { minLength: 1, maxLength: 3 }) }),
    fc.record({
      type: fc.constant('array'),
      items: tie('schema'),
      minItems: optional(small),
      maxItems: optional(small),
    }),
    fc.record({ prefixItems: fc.array(tie('schema'), { minLength: 1, maxLength: 3 }) }),
    fc
      .tuple(fc.dictionary(name, tie('schema'), { minKeys: 1, maxKeys: 4, noNullPrototype: true }), fc.nat())
      .map(([properties, take]) => ({
        type: 'object',
        properties,
        required: Object.keys(properties).filter((_, i) => (take >> i) & 1),
      })),
    fc.record({ type: fc.constant('object'), additionalProperties: tie('schema') }),
    fc.record({ type: fc.constant(['string', 'null', 'array']), maxLength: optional(small), items: tie('schema') }),
  ),
}))

describe('a JSON Schema', () => {
  it('is followed by every text that ends, or refused', () => {
    const counts = { refused: 0, ended: 0, open: 0 }
    const ajv = new Ajv2020({ strict: false, validateFormats: false })
    fc.assert(
      fc.property(schema, fc.infiniteStream(fraction), (wanted, draws) => {
        const given = JSON.parse(JSON.stringify(wanted)) as object | boolean
        const keeper = keeperOf(given)
        if (!keeper) {
          counts.refused++
          return
        }
        const follows = ajv.compile(given)
        for (let walk = 0; walk < 4; walk++) {
          const text = randomText(keeper, () => draws.next().value as number)
          if (text === undefined) counts.open++
          else {
            counts.ended++
            if (!follows(JSON.parse(text))) throw new Error(`${text} does not follow`)
          }
        }
      }),
      { numRuns: RUNS },
    )
    // Most schemas are served, and most walks come to an end.
    expect(counts.ended).toBeGreaterThan(4 * (counts.refused + counts.open))
  }, 120_000)
})

function keeperOf(given: object | boolean): ReturnType<typeof tinyKeeper> | undefined {
  try {
    return tinyKeeper({ $case: 'jsonSchema', jsonSchema: JSON.stringify(given) })
  } catch (error) {
    if (!(error instanceof GrammarError)) throw error
    return undefined
  }
}
