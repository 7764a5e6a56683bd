/**
 * Server-sent events of a streamed answer. What does not change from chunk to chunk is encoded once per stream, so that
 * a token costs one JSON.stringify of its text and no object.
 */
import type { DegradedEvent, GenerateEvent, Usage } from '../../request.js'
import { encodeUsage, fingerprint, type Served } from './answer.js'
import { chatLogprobs, codePoints, completionLogprobs, textOffsets } from './logprobs.js'

type TextEvent = Extract<GenerateEvent, { type: 'text' }>

/** Encodes the events of one stream; every method returns whole SSE events, or '' for nothing to say. */
export interface ChunkEncoder {
  /** What a choice begins with. */
  opening(index: number): string
  text(event: TextEvent): string
  finished(index: number, reason: 'stop' | 'length'): string
  /**
   * A chunk of a choice without text, which every client takes, with an object `edgeshift` beside `choices`. The chunks
   * after it name the new rung.
   */
  degraded(event: DegradedEvent): string
  /** The chunk with empty choices that `stream_options.include_usage` asks for. */
  usage(usage: Usage): string
}

/** What a stream's chunks carry beside the text; with `includeUsage` every chunk states a usage, mostly null. */
interface ChunkOptions {
  includeUsage: boolean
  includeTokenIds: boolean
  /** Text offsets at which the choices begin: of a stream that is resumed in its middle. */
  offsets?: readonly number[]
}

/** Makes the encoder of one endpoint for one stream. */
export type ChunkEncoderFactory = (served: Served, options: ChunkOptions) => ChunkEncoder

/** The last event of a stream that did not fail. */
export const DONE = 'data: [DONE]\n\n'

/** Encoder of POST /v1/chat/completions. */
export const chatChunks: ChunkEncoderFactory = (served, { includeUsage, includeTokenIds }) => {
  let { head, choice, tail } = frame('chat.completion.chunk', served, includeUsage)
  return {
    opening: (index) =>
      `${choice}${index},"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null${tail}`,
    text({ index, text, tokens, logprobs }) {
      if (text === '' && !logprobs && !includeTokenIds) return ''
      const stated = logprobs ? JSON.stringify(chatLogprobs(logprobs)) : 'null'
      const delta = `"delta":{"content":${JSON.stringify(text)}}`
      const ids = includeTokenIds ? tokenIds(tokens) : ''
      return `${choice}${index},${delta}${ids},"logprobs":${stated},"finish_reason":null${tail}`
    },
    finished: (index, reason) => `${choice}${index},"delta":{},"logprobs":null,"finish_reason":"${reason}"${tail}`,
    degraded(event) {
      ;({ head, choice, tail } = frame('chat.completion.chunk', { ...served, variant: event.variant }, includeUsage))
      return `${choice}${event.index},"delta":{},"logprobs":null,"finish_reason":null${withDegraded(tail, event)}`
    },
    usage: (usage) => usageChunk(head, usage),
  }
}

/** Encoder of POST /v1/completions. */
export const completionChunks: ChunkEncoderFactory = (
  served,
  { includeUsage, includeTokenIds, offsets: begin = [] },
) => {
  let { head, choice, tail } = frame('text_completion', served, includeUsage)
  const offsets = [...begin]
  return {
    opening: () => '',
    text({ index, text, tokens, logprobs }) {
      if (text === '' && !logprobs && !includeTokenIds) return ''
      const offset = offsets[index] ?? 0
      const stated = logprobs
        ? JSON.stringify(completionLogprobs(logprobs, textOffsets(logprobs, text, offset)))
        : 'null'
      if (logprobs) offsets[index] = offset + codePoints(text)
      const ids = includeTokenIds ? tokenIds(tokens) : ''
      return `${choice}${index},"text":${JSON.stringify(text)}${ids},"logprobs":${stated},"finish_reason":null${tail}`
    },
    finished: (index, reason) => `${choice}${index},"text":"","logprobs":null,"finish_reason":"${reason}"${tail}`,
    degraded(event) {
      ;({ head, choice, tail } = frame('text_completion', { ...served, variant: event.variant }, includeUsage))
      return `${choice}${event.index},"text":"","logprobs":null,"finish_reason":null${withDegraded(tail, event)}`
    },
    usage: (usage) => usageChunk(head, usage),
  }
}

function tokenIds(tokens: readonly number[]): string {
  return `,"token_ids":${JSON.stringify(tokens)}`
}

function frame(object: string, { id, created, variant }: Served, includeUsage: boolean) {
  const constant = JSON.stringify({ id, object, created, model: variant, system_fingerprint: fingerprint(variant) })
  const head = `data: ${constant.slice(0, -1)},"choices":[`
  return { head, choice: `${head}{"index":`, tail: includeUsage ? '}],"usage":null}\n\n' : '}]}\n\n' }
}

/** A chunk's tail, which begins with the end of its choices, with the event behind them. */
function withDegraded(tail: string, { variant, reason, cause, replayedTokens }: DegradedEvent): string {
  const degraded = JSON.stringify({ variant, reason, cause, replayed_tokens: replayedTokens })
  return `}],"edgeshift":{"degraded":${degraded}}${tail.slice(2)}`
}

function usageChunk(head: string, usage: Usage): string {
  return `${head}],"usage":${JSON.stringify(encodeUsage(usage))}}\n\n`
}
