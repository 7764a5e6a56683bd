/** The messages of the WebSocket chat as schemas: what is parsed, documented in docs/websocket.schema.json, tested. */
import { z } from 'zod'
import { chatBodySchema, completionBodySchema } from '../body.js'

/** Names a request on its socket. */
const idSchema = z
  .string()
  .min(1)
  .max(64)
  .describe('Chosen by the client; unique among the running requests of its socket.')

/** Fields of the HTTP bodies that choose a form of the answer; here every answer streams, with its token ids. */
export const FORM_FIELDS = { stream: true, stream_options: true, return_token_ids: true } as const

const chatFields = chatBodySchema.omit(FORM_FIELDS).shape
const completionFields = completionBodySchema.omit(FORM_FIELDS).shape

const chatMessage = z
  .strictObject({ type: z.literal('chat'), id: idSchema, ...chatFields })
  .describe('Starts a chat; the other fields are those of POST /v1/chat/completions.')

const completionMessage = z
  .strictObject({ type: z.literal('completion'), id: idSchema, ...completionFields })
  .describe('Starts a completion; the other fields are those of POST /v1/completions.')

/** Reads a resumable stream again. */
export const resumeSchema = z
  .strictObject({
    type: z.literal('resume'),
    id: idSchema,
    request_id: z.string().min(1).max(64).describe("Of `started`, or the HTTP API's stream id."),
    after: z.int().min(0).describe('`event` of the last message received; 0 = from the start.'),
  })
  .describe('Gives the rest of a resumable stream under a name of this socket, wherever it was started.')

/** Asks what would serve a request. */
export const routeSchema = z
  .strictObject({
    type: z.literal('route'),
    id: idSchema,
    request: z
      .record(z.string(), z.unknown())
      .describe('A body of POST /v1/route: of a chat, a completion, or a size.'),
  })
  .describe('Answered by one message `route`; nothing is done.')

/** Stops a request; it ends with an error `cancelled`. Unknown ids are ignored: the request may just have ended. */
export const cancelSchema = z
  .strictObject({ type: z.literal('cancel'), id: idSchema })
  .describe('Stops a request, which then ends with the error `cancelled`. Unknown ids are ignored.')

/** Asks for a pong. */
export const pingSchema = z.strictObject({ type: z.literal('ping') }).describe('Answered by pong.')

/** Everything a client may send, one JSON text message each. */
export const clientMessageSchema = z.discriminatedUnion('type', [
  chatMessage,
  completionMessage,
  resumeSchema,
  routeSchema,
  cancelSchema,
  pingSchema,
])

const count = z.int().min(0)
const eventNumber = z
  .int()
  .min(1)
  .optional()
  .describe('Number of this event, for `resume`; only of resumable requests.')
const alternative = z.strictObject({ id: count, token: z.string(), logprob: z.number() })
const logprobSchema = z.strictObject({
  id: count,
  token: z.string(),
  logprob: z.number().nullable().describe('Natural logarithm; null for the first token of an echoed prompt.'),
  top: z.array(alternative),
})

/** Everything a server may send, one JSON text message each. */
export const serverMessageSchema = z.discriminatedUnion('type', [
  z
    .strictObject({
      type: z.literal('started'),
      id: idSchema,
      event: eventNumber,
      request_id: z.string().describe("The server's own id, as in its log."),
      variant: z.string().describe('What serves the request: "model:rung".'),
      reason: z.string().describe('Why it was chosen.'),
    })
    .describe('First message of a request.'),
  z
    .strictObject({
      type: z.literal('delta'),
      id: idSchema,
      event: eventNumber,
      index: count.describe('Which choice.'),
      text: z.string(),
      tokens: z.array(count),
      logprobs: z.array(logprobSchema).optional(),
    })
    .describe('New text of one choice: all of its tokens from one step.'),
  z
    .strictObject({
      type: z.literal('degraded'),
      id: idSchema,
      event: eventNumber,
      variant: z.string().describe('What serves the request from here on: "model:rung".'),
      reason: z.string(),
      cause: z.enum(['engine_failed', 'rung_failed']),
      replayed_tokens: count.describe('Tokens told before, which were given to the engine again; all choices.'),
    })
    .describe('What began to answer was lost; the answer goes on from another place without a gap or a repeat.'),
  z
    .strictObject({
      type: z.literal('finished'),
      id: idSchema,
      event: eventNumber,
      index: count,
      reason: z.enum(['stop', 'length']),
    })
    .describe('One choice is complete.'),
  z
    .strictObject({
      type: z.literal('usage'),
      id: idSchema,
      event: eventNumber,
      usage: z.strictObject({
        prompt_tokens: count,
        completion_tokens: count,
        total_tokens: count,
        prompt_tokens_details: z.strictObject({ cached_tokens: count }),
      }),
    })
    .describe('Last message of a request; its id is free again.'),
  z
    .strictObject({
      type: z.literal('error'),
      id: idSchema.optional().describe('The request that ends here; absent when a message could not be read.'),
      error: z.strictObject({
        message: z.string(),
        type: z.string(),
        param: z.string().nullable(),
        code: z.string(),
      }),
      retry_after_ms: z.int().optional(),
    })
    .describe('A request failed, or a message was refused. The socket lives on.'),
  z
    .strictObject({ type: z.literal('route'), id: idSchema, route: z.record(z.string(), z.unknown()) })
    .describe('What would serve a request, as POST /v1/route answers; its id is free again.'),
  z.strictObject({ type: z.literal('pong') }),
])

/** A message of the server. */
export type ServerMessage = z.infer<typeof serverMessageSchema>

/** JSON Schema of both directions, as published in docs/websocket.schema.json. */
export function messageJsonSchema(): object {
  const { $schema, ...client } = z.toJSONSchema(clientMessageSchema, { unrepresentable: 'any', io: 'input' })
  const { $schema: _, ...server } = z.toJSONSchema(serverMessageSchema)
  return { $schema, title: 'edgeshift WebSocket chat messages', $defs: { client, server } }
}

/** True for a usable request id. */
export function isRequestId(id: unknown): id is string {
  return idSchema.safeParse(id).success
}
