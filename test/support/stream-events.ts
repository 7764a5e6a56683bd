/** What tests of streams look at: the events of one request, and how an engine's sequence begins. */
import type { GenerateEvent } from '../../gateway/request.js'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { tinyTokens } from './tiny-tokenizer.js'

/** Not at its end. */
export const RUNNING = FinishReason.UNSPECIFIED
/** What comes with a sequence's first tokens. */
export const START = { start: { cachedTokens: 1, queueUs: 5 } }

/** The events of one type. */
export const ofType = <T extends GenerateEvent['type']>(events: GenerateEvent[], type: T) =>
  events.filter((event): event is Extract<GenerateEvent, { type: T }> => event.type === type)

/** A choice's text. */
export const textOf = (events: GenerateEvent[], index = 0): string =>
  ofType(events, 'text')
    .filter((event) => event.index === index)
    .map((event) => event.text)
    .join('')

/** A choice's tokens. */
export const tokensOf = (events: GenerateEvent[], index = 0): number[] =>
  ofType(events, 'text')
    .filter((event) => event.index === index)
    .flatMap((event) => event.tokens)

/** "ab" as ids: encoding a text would take a worker's time. */
export const PROMPT = { input: { kind: 'tokens' as const, tokens: tinyTokens('ab') } }
