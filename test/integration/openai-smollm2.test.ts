/** The same unmodified clients as in openai-clients.test.ts, answered by the embedded model. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { eventually, GatewayProcess, onlyRung } from '../support/gateway-process.js'
import {
  aiGenerateText,
  aiStreamText,
  chatText,
  openAiAbort,
  openAiChat,
  openAiChatRunner,
  openAiChatStream,
  openAiClient,
  openAiCompletion,
  openAiCompletionStream,
  openAiError,
  openAiUnsupported,
  type Target,
} from '../support/openai-scenarios.js'

/** The generation of a client that went away has been logged. */
const aborted = (): boolean => box.log.some(({ outcome }) => outcome === 'cancelled')

let box: GatewayProcess
let target: Target

beforeAll(async () => {
  box = await GatewayProcess.startShipped(onlyRung('fp16')).ready()
  target = { url: box.url, model: 'chat' }
})
afterAll(() => box.close())

describe('the embedded model', () => {
  it('gives every client the same greedy chat, whole and streamed', async () => {
    const { choices, model, usage } = await openAiChat(target)
    const text = choices[0]?.message.content ?? ''
    expect(text).not.toBe('')
    expect(model).toBe('smollm2:fp16')
    expect(usage?.completion_tokens).toBe(12)
    const chunks = await openAiChatStream(target)
    expect(chatText(chunks)).toBe(text)
    expect(chunks.at(-1)?.usage).toMatchObject({ prompt_tokens: usage?.prompt_tokens, completion_tokens: 12 })
    expect(await openAiChatRunner(target)).toBe(text)
    const fromAi = { text, finishReason: 'length', inputTokens: usage?.prompt_tokens }
    expect(await aiGenerateText(target)).toEqual(fromAi)
    expect(await aiStreamText(target)).toEqual(fromAi)
  })

  it('completes a prompt, whole and streamed', async () => {
    const text = (await openAiCompletion(target)).choices[0]?.text
    expect(text).toContain('Paris')
    expect(await openAiCompletionStream(target)).toBe(text)
  })

  it('scores a prompt without generating', async () => {
    const prompt = 'The capital of France is Paris'
    const request = { model: 'chat', prompt, echo: true, max_tokens: 0, logprobs: 1 }
    const [choice] = (await openAiClient(target).completions.create(request)).choices
    const { tokens = [], token_logprobs: logprobs = [], text_offset: offsets = [] } = choice?.logprobs ?? {}
    expect(choice?.text).toBe(prompt)
    expect(tokens.join('')).toBe(prompt)
    expect(offsets).toEqual(tokens.map((_, index) => tokens.slice(0, index).join('').length))
    expect(logprobs[0]).toBeNull()
    expect(logprobs.at(-1)).toBeGreaterThan(Math.log(0.5))
  })

  it('refuses what it cannot serve', async () => {
    expect(await openAiError(target)).toMatchObject({ status: 404, code: 'model_not_found', param: 'model' })
    expect(await openAiUnsupported(target)).toMatchObject({ status: 400, param: 'tools' })
    const long = openAiClient(target).completions.create({ model: 'chat', prompt: 'word '.repeat(10_000) })
    await expect(long).rejects.toMatchObject({ status: 400, code: 'context_length_exceeded' })
  })

  it('stops for a client that aborts', async () => {
    expect(await openAiAbort(target)).toBe('aborted')
    const idle = /^edgeshift_num_requests_running 0$/m
    let metrics = ''
    for (let i = 0; i < 100 && !idle.test(metrics); i++) metrics = await (await fetch(`${box.url}/metrics`)).text()
    expect(metrics).toMatch(idle)
    await eventually(aborted, 'the abort is in the log')
  })
})
