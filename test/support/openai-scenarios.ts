/**
 * What unmodified OpenAI clients do, as functions of a base URL and a model: run over the scripted generator and over
 * the real engine alike.
 */
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, Output, streamText } from 'ai'
import OpenAI, { APIError } from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'

/** Where the API is and which model answers. */
export interface Target {
  /** "http://host:port", no slash at the end. */
  url: string
  model: string
}

const MESSAGES: OpenAI.Chat.ChatCompletionMessageParam[] = [
  { role: 'system', content: 'Answer briefly.' },
  { role: 'user', content: 'What is the capital of France?' },
]
const PROMPT = 'The capital of France is'

/** Fields that make two runs give the same text. */
const FIXED = { seed: 7, temperature: 0, max_tokens: 12 }

/** All that an iterable gives. */
export async function collect<T>(source: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const one of source) all.push(one)
  return all
}

/** The official client, without its own retries. */
export function openAiClient({ url }: Target): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0 })
}

/** A whole chat answer. */
export function openAiChat(target: Target): Promise<OpenAI.Chat.ChatCompletion> {
  return openAiClient(target).chat.completions.create({ ...FIXED, model: target.model, messages: MESSAGES })
}

/** The chunks of a streamed chat with usage. */
export async function openAiChatStream(target: Target): Promise<OpenAI.Chat.ChatCompletionChunk[]> {
  const stream = await openAiClient(target).chat.completions.create({
    ...FIXED,
    model: target.model,
    messages: MESSAGES,
    stream: true,
    stream_options: { include_usage: true },
  })
  return collect(stream)
}

/** Text of the first choice of chunks. */
export function chatText(chunks: readonly OpenAI.Chat.ChatCompletionChunk[]): string {
  return chunks.map(({ choices: [choice] }) => choice?.delta.content ?? '').join('')
}

/** The client's own accumulation of a stream. */
export async function openAiChatRunner(target: Target): Promise<string | null> {
  const runner = openAiClient(target).chat.completions.stream({ ...FIXED, model: target.model, messages: MESSAGES })
  return runner.finalContent()
}

/** A whole completion. */
export function openAiCompletion(target: Target): Promise<OpenAI.Completion> {
  return openAiClient(target).completions.create({ ...FIXED, model: target.model, prompt: PROMPT })
}

/** Text of a streamed completion. */
export async function openAiCompletionStream(target: Target): Promise<string> {
  const create = { ...FIXED, model: target.model, prompt: PROMPT, stream: true } as const
  let text = ''
  for await (const chunk of await openAiClient(target).completions.create(create)) text += chunk.choices[0]?.text ?? ''
  return text
}

/** What the answers of `openAiParsed` and `aiObject` are. */
const CAPITAL = z.strictObject({ capital: z.string() })

/** An answer that the client has parsed by the schema it asked with. */
export async function openAiParsed(target: Target): Promise<z.infer<typeof CAPITAL> | null> {
  const response_format = zodResponseFormat(CAPITAL, 'capital')
  const asked = { ...FIXED, model: target.model, messages: MESSAGES, response_format }
  const completion = await openAiClient(target).chat.completions.parse(asked)
  return completion.choices[0]?.message.parsed ?? null
}

/** The error that a request for an unknown model gets. */
export function openAiError(target: Target): Promise<APIError> {
  return failureOf(openAiClient(target).chat.completions.create({ model: 'no-such-model', messages: MESSAGES }))
}

/** The error that an unsupported field gets. */
export function openAiUnsupported(target: Target): Promise<APIError> {
  const tools = [{ type: 'function', function: { name: 'weather' } } as const]
  return failureOf(openAiClient(target).chat.completions.create({ model: target.model, messages: MESSAGES, tools }))
}

async function failureOf(request: Promise<unknown>): Promise<APIError> {
  const outcome = await request.then(
    () => undefined,
    (error: unknown) => error,
  )
  if (outcome instanceof APIError) return outcome
  throw new Error('the request did not fail with an APIError', { cause: outcome })
}

/** Aborts a stream after its first text; returns how it ended for the client. */
export async function openAiAbort(target: Target): Promise<'aborted'> {
  const stream = await openAiClient(target).chat.completions.create({
    model: target.model,
    messages: MESSAGES,
    max_tokens: 512,
    stream: true,
  })
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) stream.controller.abort()
  return 'aborted'
}

/** generateText of the ai package. */
export async function aiGenerateText(
  target: Target,
): Promise<{ text: string; finishReason: string; inputTokens: number }> {
  const { text, finishReason, usage } = await generateText(aiRequest(target))
  return { text, finishReason, inputTokens: usage.inputTokens ?? 0 }
}

/** streamText of the ai package, with the usage its provider asks for. */
export async function aiStreamText(
  target: Target,
): Promise<{ text: string; finishReason: string; inputTokens: number }> {
  const result = streamText(aiRequest(target))
  const text = (await collect(result.textStream)).join('')
  return { text, finishReason: await result.finishReason, inputTokens: (await result.usage).inputTokens ?? 0 }
}

/** An object of the ai package: by its schema where the provider is told that there are grammars, else as any object. */
export async function aiObject({ url, model }: Target, supportsStructuredOutputs: boolean): Promise<unknown> {
  const provider = createOpenAICompatible({ name: 'edgeshift', baseURL: `${url}/v1`, supportsStructuredOutputs })
  const output = Output.object({ schema: CAPITAL })
  return (await generateText({ ...aiRequest({ url, model }), model: provider(model), output })).output
}

function aiRequest({ url, model }: Target): Parameters<typeof generateText>[0] {
  const provider = createOpenAICompatible({ name: 'edgeshift', baseURL: `${url}/v1`, includeUsage: true })
  return {
    model: provider(model),
    system: 'Answer briefly.',
    prompt: 'What is the capital of France?',
    temperature: 0,
    seed: 7,
    maxOutputTokens: 12,
    maxRetries: 0,
  }
}
