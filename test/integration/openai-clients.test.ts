import { APIUserAbortError } from 'openai'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { answer, type FakeServices, fakeServices, hold } from '../support/fake-services.js'
import { serveHttp, type TestServer } from '../support/http-server.js'
import {
  aiGenerateText,
  aiObject,
  aiStreamText,
  chatText,
  collect,
  openAiAbort,
  openAiChat,
  openAiChatRunner,
  openAiChatStream,
  openAiClient,
  openAiCompletion,
  openAiCompletionStream,
  openAiError,
  openAiParsed,
  openAiUnsupported,
  type Target,
} from '../support/openai-scenarios.js'

let services: FakeServices
let server: TestServer
let target: Target

beforeEach(async () => {
  services = fakeServices(answer('Paris', ' is', ' it.'))
  server = await serveHttp(services)
  target = { url: server.url, model: 'fake' }
})
afterEach(() => server.close())

/** The schema that the first request's answer was to follow. */
function askedSchema(): unknown {
  const kind = services.generator.runs[0]?.request.grammar?.kind
  return kind?.$case === 'jsonSchema' ? JSON.parse(kind.jsonSchema) : undefined
}

describe('the openai package', () => {
  it('gets a whole chat', async () => {
    const completion = await openAiChat(target)
    expect(completion).toMatchObject({
      object: 'chat.completion',
      model: 'fake:int4',
      choices: [{ index: 0, message: { role: 'assistant', content: 'Paris is it.' }, finish_reason: 'stop' }],
      usage: { prompt_tokens: 3, completion_tokens: 3, total_tokens: 6 },
    })
    expect(completion.id).toMatch(/^chatcmpl-/)
  })

  it('streams a chat: role first, usage last', async () => {
    const chunks = await openAiChatStream(target)
    expect(chunks[0]?.choices[0]?.delta).toEqual({ role: 'assistant', content: '' })
    expect(chatText(chunks)).toBe('Paris is it.')
    expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe('stop')
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 3 } })
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1)
    expect(await openAiChatRunner(target)).toBe('Paris is it.')
  })

  it('gets completions, whole and streamed', async () => {
    const completion = await openAiCompletion(target)
    expect(completion).toMatchObject({ object: 'text_completion', choices: [{ text: 'Paris is it.' }] })
    expect(await openAiCompletionStream(target)).toBe('Paris is it.')
  })

  it('parses an answer by the schema that it asked with', async () => {
    services.generator.script = answer('{"capital": ', '"Paris"}')
    expect(await openAiParsed(target)).toEqual({ capital: 'Paris' })
    expect(askedSchema()).toMatchObject({ properties: { capital: { type: 'string' } }, required: ['capital'] })
  })

  it('lists models and rungs', async () => {
    const client = openAiClient(target)
    expect((await collect(client.models.list())).map(({ id }) => id)).toEqual(['fake', 'other'])
    expect((await client.models.retrieve('fake:int4')).id).toBe('fake:int4')
  })

  it('sees errors with their status, code and field', async () => {
    expect(await openAiUnsupported(target)).toMatchObject({
      status: 400,
      code: 'unsupported_parameter',
      param: 'tools',
    })
    services.generator.script = (run) =>
      run.fail(new GatewayError('model_not_found', 'no such model', { param: 'model' }))
    expect(await openAiError(target)).toMatchObject({ status: 404, code: 'model_not_found', param: 'model' })
    services.generator.script = (run) =>
      run.fail(new GatewayError('queue_full', 'the queue is full', { retryAfterMs: 1200 }))
    const refused = await openAiError(target)
    expect(refused).toMatchObject({ status: 429, code: 'queue_full' })
    expect(refused.headers?.get('retry-after')).toBe('2')
  })

  it('sees an error in mid-stream', async () => {
    services.generator.script = (run) => {
      run.start()
      run.text('Par')
      run.fail(new GatewayError('engine_failed', 'the engine died'))
    }
    await expect(openAiChatStream(target)).rejects.toMatchObject({
      code: 'engine_failed',
      error: { message: 'the engine died' },
    })
  })

  it('cancels the work when it aborts a stream', async () => {
    services.generator.script = (run) => {
      run.start()
      run.text('Par')
    }
    expect(await openAiAbort(target)).toBe('aborted')
    const run = await services.generator.run(0)
    await run.until(({ ended }) => ended)
    expect(run.cancelled).toBe(true)
    expect(services.generator.active).toBe(0)
  })

  it('cancels the work when it aborts a whole answer', async () => {
    services.generator.script = hold
    const abort = new AbortController()
    const request = openAiClient(target).chat.completions.create(
      { model: 'fake', messages: [{ role: 'user', content: 'x' }] },
      { signal: abort.signal },
    )
    const failure = request.then(
      () => undefined,
      (error: unknown) => error,
    )
    const run = await services.generator.run(0)
    abort.abort()
    expect(await failure).toBeInstanceOf(APIUserAbortError)
    await run.until(({ cancelled }) => cancelled)
  })

  it('reads log probabilities', async () => {
    const entry = {
      id: 5,
      token: 'Hi',
      logprob: -0.25,
      top: [{ id: 6, token: 'Ho', logprob: Number.NEGATIVE_INFINITY }],
    }
    services.generator.script = (run) => {
      run.start()
      run.text('Hi', 0, [5], [entry])
      run.finish()
    }
    const chat = await openAiClient(target).chat.completions.create({
      model: 'fake',
      messages: [{ role: 'user', content: 'x' }],
      logprobs: true,
      top_logprobs: 1,
    })
    expect(chat.choices[0]?.logprobs?.content).toEqual([
      {
        token: 'Hi',
        logprob: -0.25,
        bytes: [72, 105],
        top_logprobs: [{ token: 'Ho', logprob: -9999, bytes: [72, 111] }],
      },
    ])
  })

  it('merges several prompts with several choices', async () => {
    services.generator.script = (run) => {
      const { input, n } = run.request
      run.start()
      for (let index = 0; index < n; index++) run.text(`${input.kind === 'text' ? input.text : ''}${index}`, index)
      run.finish(n)
    }
    const completion = await openAiClient(target).completions.create({ model: 'fake', prompt: ['a', 'b'], n: 2 })
    expect(completion.choices.map(({ index, text }) => [index, text])).toEqual([
      [0, 'a0'],
      [1, 'a1'],
      [2, 'b0'],
      [3, 'b1'],
    ])
    expect(completion.usage).toMatchObject({ prompt_tokens: 6, completion_tokens: 4, total_tokens: 10 })
  })

  it('scores a prompt without generating, as evaluation harnesses do', async () => {
    services.generator.script = (run) => {
      expect(run.request).toMatchObject({ echo: true, maxTokens: 0, topLogprobs: 1 })
      run.start()
      run.text(
        'né',
        0,
        [1, 2],
        [
          { id: 1, token: 'n', logprob: null, top: [] },
          { id: 2, token: 'é', logprob: -1, top: [{ id: 3, token: 'o', logprob: -0.5 }] },
        ],
      )
      run.finish(0, 'length')
    }
    const { choices } = await openAiClient(target).completions.create({
      model: 'fake',
      prompt: 'né',
      echo: true,
      max_tokens: 0,
      logprobs: 1,
    })
    expect(choices[0]).toEqual({
      index: 0,
      text: 'né',
      finish_reason: 'length',
      logprobs: {
        tokens: ['n', 'é'],
        token_logprobs: [null, -1],
        top_logprobs: [null, { o: -0.5, é: -1 }],
        text_offset: [0, 1],
      },
    })
  })
})

describe('the ai package', () => {
  it.each([
    [true, { properties: { capital: { type: 'string' } }, required: ['capital'] }],
    [false, { type: 'object' }],
  ])('generates an object, by its schema: %s', async (bySchema, schema) => {
    services.generator.script = answer('{"capital": ', '"Paris"}')
    expect(await aiObject(target, bySchema)).toEqual({ capital: 'Paris' })
    expect(askedSchema()).toMatchObject(schema)
  })

  it('generates and streams text', async () => {
    const expected = { text: 'Paris is it.', finishReason: 'stop', inputTokens: 3 }
    expect(await aiGenerateText(target)).toEqual(expected)
    expect(await aiStreamText(target)).toEqual(expected)
    expect(services.generator.runs[0]?.request).toMatchObject({ maxTokens: 12, sampling: { seed: 7, temperature: 0 } })
  })
})
