/** The OpenAPI document, from the schemas that validate. */
import { z } from 'zod'
import { ADMIN_ACTIONS, adminBodySchema } from './admin.js'
import { chatBodySchema, completionBodySchema, detokenizeBodySchema, tokenizeBodySchema } from '../body.js'
import { routeBodySchema } from '../route.js'

const ERROR_SCHEMA = {
  type: 'object',
  required: ['error'],
  properties: {
    error: {
      type: 'object',
      required: ['message', 'type', 'param', 'code'],
      properties: {
        message: { type: 'string' },
        type: { type: 'string' },
        param: { type: ['string', 'null'] },
        code: { type: 'string' },
      },
    },
  },
}

const JSON_TYPE = 'application/json'
const STREAM_TYPE = 'text/event-stream'

/** An OpenAPI 3.1 description of every route. */
export function openApiDocument(): object {
  return {
    openapi: '3.1.0',
    info: { title: 'edgeshift', version: '1', description: 'OpenAI-compatible API of an edgeshift gateway.' },
    paths: {
      '/v1/chat/completions': post('createChatCompletion', 'Answers a chat.', 'ChatRequest', true),
      '/v1/completions': post('createCompletion', 'Continues a prompt.', 'CompletionRequest', true),
      '/v1/streams/{id}': {
        parameters: [{ name: 'id', in: 'path', required: true, schema: { type: 'string' } }],
        ...get('resumeStream', 'The rest of a resumable stream after the event that last-event-id names.', STREAM_TYPE),
        ...remove('cancelStream', 'Ends a resumable stream.'),
      },
      '/v1/models': get('listModels', 'Lists the models with their rungs.'),
      '/v1/models/{id}': {
        parameters: [{ name: 'id', in: 'path', required: true, schema: { type: 'string' } }],
        ...get('getModel', 'One model by id, "id:rung" or tag.'),
      },
      '/v1/route': post(
        'route',
        'What would serve a request: a dry run. Takes chats and completions, too.',
        'RouteRequest',
        false,
      ),
      '/tokenize': post('tokenize', 'Text to token ids.', 'TokenizeRequest', false),
      '/detokenize': post('detokenize', 'Token ids to text.', 'DetokenizeRequest', false),
      '/health': get('health', 'Readiness: 503 while loading or draining.'),
      '/metrics': get('metrics', 'Prometheus metrics.', 'text/plain'),
      '/admin/models': get('listResidency', 'What is in memory: rungs and devices. Admin keys only.'),
      ...Object.fromEntries(
        Object.keys(ADMIN_ACTIONS).map((name) => [
          `/admin/models/${name}`,
          post(
            `${name}Model`,
            `Does "${name}" to one rung and answers with how it is then. Admin keys only.`,
            'AdminRequest',
            false,
          ),
        ]),
      ),
      '/openapi.json': get('openapi', 'This document.'),
    },
    components: {
      schemas: {
        ChatRequest: schemaOf(chatBodySchema),
        CompletionRequest: schemaOf(completionBodySchema),
        RouteRequest: routeRequest,
        TokenizeRequest: schemaOf(tokenizeBodySchema),
        DetokenizeRequest: schemaOf(detokenizeBodySchema),
        AdminRequest: schemaOf(adminBodySchema),
        Error: ERROR_SCHEMA,
      },
    },
  }
}

const routeRequest = {
  anyOf: [
    schemaOf(routeBodySchema),
    { $ref: '#/components/schemas/ChatRequest' },
    { $ref: '#/components/schemas/CompletionRequest' },
  ],
}

function schemaOf(schema: z.ZodType): object {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { unrepresentable: 'any' })
  return rest
}

function get(operationId: string, summary: string, type = JSON_TYPE): object {
  return { get: { operationId, summary, responses: responses({ [type]: {} }) } }
}

function remove(operationId: string, summary: string): object {
  const { 200: _, ...failures } = responses({})
  return { delete: { operationId, summary, responses: { '204': { description: 'Done.' }, ...failures } } }
}

function post(operationId: string, summary: string, body: string, streams: boolean): object {
  const content = streams ? { [JSON_TYPE]: {}, [STREAM_TYPE]: {} } : { [JSON_TYPE]: {} }
  const requestBody = {
    required: true,
    content: { [JSON_TYPE]: { schema: { $ref: `#/components/schemas/${body}` } } },
  }
  return { post: { operationId, summary, requestBody, responses: responses(content) } }
}

function responses(content: object): Record<string, object> {
  const error = { [JSON_TYPE]: { schema: { $ref: '#/components/schemas/Error' } } }
  return {
    '200': { description: 'Done.', content },
    default: { description: 'An error of the catalogue.', content: error },
  }
}
