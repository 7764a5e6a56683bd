import { Validator } from '@seriousme/openapi-schema-validator'
import { describe, expect, it } from 'vitest'
import { createHttpApp } from '../../gateway/protocols/openai/app.js'
import { openApiDocument } from '../../gateway/protocols/openai/openapi.js'
import { fakeServices } from '../support/fake-services.js'

/** The document as a client gets it. */
const text = JSON.stringify(openApiDocument())
const document: { openapi: string; paths: Record<string, Record<string, unknown>> } = JSON.parse(text)

describe('/openapi.json', () => {
  it('is valid OpenAPI 3.1', async () => {
    expect(document.openapi).toMatch(/^3\.1\./)
    expect(await new Validator().validate(document)).toEqual({ valid: true })
  })

  it('has every route of the application and no other', () => {
    const methods = new Set(['GET', 'POST'])
    const served = createHttpApp(fakeServices())
      .routes.filter(({ method }) => methods.has(method))
      .map(({ method, path }) => `${method} ${path.replace(/:(\w+)(\{.*\})?/, '{$1}')}`)
    const described = Object.entries(document.paths).flatMap(([path, item]) =>
      Object.keys(item)
        .filter((method) => methods.has(method.toUpperCase()))
        .map((method) => `${method.toUpperCase()} ${path}`),
    )
    expect(described.toSorted()).toEqual(served.toSorted())
  })
})
