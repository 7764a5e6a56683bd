import type { GenerateRequest } from '../request.js'
import type { TextModel } from '../text/types.js'
import type { Echo } from './choice.js'

/** The prompt as token ids. Throws, or rejects with, what the model's text side refuses. */
export function encode({ input, tenant }: GenerateRequest, text: TextModel): number[] | Promise<number[]> {
  if (input.kind === 'tokens') return input.tokens
  return input.kind === 'chat' ? text.encodeChat(input.messages, tenant) : text.encodePrompt(input.text, tenant)
}

/** The prompt as the client wrote it, or its decoded text when it was ids or a conversation. */
export function echoOf({ input }: GenerateRequest, tokens: number[], text: TextModel): Echo {
  return { text: input.kind === 'text' ? input.text : text.decode(tokens, false), tokens }
}
