import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { ERROR_CODES, GatewayError } from '../../gateway/errors.js'
import { chatBodySchema, completionBodySchema } from '../../gateway/protocols/body.js'

const page = readFileSync(new URL('../../docs/http.md', import.meta.url), 'utf8')

describe('docs/http.md', () => {
  it('has the error catalogue', () => {
    const rows = ERROR_CODES.map((code) => {
      const error = new GatewayError(code, '')
      return `| \`${code}\` | ${error.httpStatus} | ${error.toObject().error.type} |`
    })
    expect(page.match(/^\| `\w+` \| \d{3} \| \w+ \|$/gm)).toEqual(rows)
  })

  it('names every field', () => {
    const fields = [...Object.keys(chatBodySchema.shape), ...Object.keys(completionBodySchema.shape)]
    expect(fields.filter((field) => !page.includes(`\`${field}`))).toEqual([])
  })
})
