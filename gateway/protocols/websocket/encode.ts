/** Internal events -> JSON text messages. The parts that don't change within a request are serialized once. */
import type { GatewayError } from '../../errors.js'
import type { GenerateEvent, Usage } from '../../request.js'
import type { DryRun } from '../../router/dry-run.js'

/** The answer to a ping. */
export const PONG = '{"type":"pong"}'

/** An error message; `id` names the request that it ends. */
export function encodeError(error: GatewayError, id?: string): string {
  return JSON.stringify({
    type: 'error',
    id,
    ...error.toObject(),
    retry_after_ms: error.retryAfterMs === undefined ? undefined : Math.ceil(error.retryAfterMs),
  })
}

/** The answer to a dry run. */
export function encodeRoute(id: string, route: DryRun): string {
  return JSON.stringify({ type: 'route', id, route })
}

/** Encodes the events of one request. */
export class EventEncoder {
  private readonly deltaHead: string
  private readonly deltaPlain: string

  /** `id` is the client's name for the request, `requestId` ours. */
  constructor(
    private readonly id: string,
    private readonly requestId: string,
  ) {
    this.deltaHead = `{"type":"delta","id":${JSON.stringify(id)},"event":`
    this.deltaPlain = `{"type":"delta","id":${JSON.stringify(id)},"index":`
  }

  /** `number`: of the event, for resuming; 0 = it has none. */
  encode(event: GenerateEvent, number = 0): string {
    switch (event.type) {
      case 'text': {
        const { index, text, tokens, logprobs } = event
        const tail = logprobs ? `],"logprobs":${JSON.stringify(logprobs)}}` : ']}'
        const head = number > 0 ? `${this.deltaHead}${number},"index":` : this.deltaPlain
        return `${head}${index},"text":${JSON.stringify(text)},"tokens":[${tokens.join(',')}${tail}`
      }
      case 'started':
        return this.message('started', number, {
          request_id: this.requestId,
          variant: event.variant,
          reason: event.reason,
        })
      case 'degraded': {
        const { variant, reason, cause, replayedTokens } = event
        return this.message('degraded', number, { variant, reason, cause, replayed_tokens: replayedTokens })
      }
      case 'finished':
        return this.message('finished', number, { index: event.index, reason: event.reason })
      case 'usage':
        return this.message('usage', number, { usage: usageFields(event.usage) })
      default:
        return encodeError(event.error, this.id)
    }
  }

  private message(type: string, number: number, fields: object): string {
    return JSON.stringify({ type, id: this.id, ...(number > 0 && { event: number }), ...fields })
  }
}

function usageFields({ promptTokens, completionTokens, cachedTokens }: Usage): object {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  }
}
