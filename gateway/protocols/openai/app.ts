/** The OpenAI-compatible HTTP API: routes and nothing else. */
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import { Hono } from 'hono'
import { readJson } from '../../middleware/body.js'
import type { HttpContext, HttpEnv } from '../../middleware/context.js'
import { observe } from '../../middleware/observe.js'
import { refusePages } from '../../middleware/pages.js'
import { noteError, sendError, sendText } from '../../middleware/reply.js'
import { GatewayError } from '../../errors.js'
import type { ReaderHandle, ReaderSink } from '../../resume/record.js'
import type { Grant, Services } from '../../services.js'
import { detokenizeBodySchema, tokenizeBodySchema } from '../body.js'
import { type Call, decodeChat, decodeCompletion, type DecodeServices } from '../decode.js'
import { parseBody } from '../fields.js'
import { bearerToken, type Origin, readOrigin } from '../origin.js'
import { dryRun } from '../route.js'
import { checkText, decodeTokenIds } from '../prompt.js'
import { checkResumable, startCall } from '../start.js'
import { ADMIN_ACTIONS, encodeResidency, encodeVariant, namedVariant } from './admin.js'
import { encodeChatAnswer, encodeCompletionAnswer } from './answer.js'
import { chatChunks, completionChunks } from './chunks.js'
import { encodeModelList, encodeModelNamed } from './models.js'
import { openApiDocument } from './openapi.js'
import { type Endpoint, respond } from './respond.js'
import { lastEvent, type Place, placeIn } from './resume.js'
import { Heartbeat, type StreamTimes } from './sse.js'

/** Fifteen seconds keep common proxies from closing; a minute without reading is a dead client. */
export const STREAM_TIMES: StreamTimes = { pingMs: 15_000, stallMs: 60_000 }

const CHAT: Endpoint = { idPrefix: 'chatcmpl-', answer: encodeChatAnswer, chunks: chatChunks }
const COMPLETION: Endpoint = { idPrefix: 'cmpl-', answer: encodeCompletionAnswer, chunks: completionChunks }

type Method = 'GET' | 'POST' | 'DELETE'
type Handler = (c: HttpContext) => void | Promise<void>

/** The HTTP application. Handlers write to the raw Node response, so it answers only behind a Node server. */
export function createHttpApp(services: Services, times: StreamTimes = STREAM_TIMES): Hono<HttpEnv> {
  const app = new Hono<HttpEnv>()
  const { access, log, limits } = services
  const heartbeat = new Heartbeat(times)

  const routes = (path: string, handlers: Partial<Record<Method, Handler>>): void => {
    const name = path.replace(/\{.*\}/, '')
    for (const [method, handler] of Object.entries(handlers)) {
      app.on(method, path, async (c) => {
        c.get('exchange').route = name
        await handler(c)
        return RESPONSE_ALREADY_SENT
      })
    }
    const allowed = Object.keys(handlers)
    app.all(path, (c) => {
      c.get('exchange').route = name
      c.env.outgoing.setHeader('allow', allowed.join(', ').replace('GET', 'GET, HEAD'))
      throw new GatewayError(
        'method_not_allowed',
        `${c.req.method} is not allowed on ${name}; use ${allowed.join(' or ')}`,
      )
    })
  }
  const route = (method: Method, path: string, handler: Handler): void => routes(path, { [method]: handler })
  /** What the caller may use; nothing of a stranger's request is read before. */
  const admit = (c: HttpContext): Grant => {
    const grant = access.admit(tokenOf(c))
    if (grant.key !== undefined) c.get('exchange').key = grant.key
    return grant
  }
  const admitAdmin = (c: HttpContext): Grant => {
    const grant = admit(c)
    if (grant.admin) return grant
    throw new GatewayError('forbidden', 'this needs a key with admin: true')
  }
  const body = (c: HttpContext): Promise<unknown> => readJson(c.env.incoming, limits.maxBodyBytes)

  const resume = (c: HttpContext, tenant: string, { id, after }: Place): void => {
    const record = services.streams.find(id, tenant)
    const endpoint = record.shape.kind === 'chat' ? CHAT : COMPLETION
    const offsets = record.window.droppedCharacters
    const shape = { ...record.shape, stream: true, id, created: record.created, after, offsets }
    const start = (sink: ReaderSink): ReaderHandle => record.attach(sink, after)
    respond({ outgoing: c.env.outgoing, exchange: c.get('exchange'), endpoint, heartbeat, log, shape, start })
  }

  const generate =
    (endpoint: Endpoint, decode: (body: unknown, origin: Origin, services: DecodeServices) => Call): Handler =>
    async (c) => {
      const { incoming, outgoing } = c.env
      const exchange = c.get('exchange')
      const grant = admit(c)
      const place = lastEvent(incoming.headers)
      // Clients that send their request again after a lost connection get what they had begun to get.
      if (place) return resume(c, grant.tenant, place)
      const origin = readOrigin((name) => headerText(incoming.headers[name]), grant.tenant, exchange.id)
      const call = decode(await body(c), origin, { limits, models: grant.models })
      checkResumable(call, call.stream)
      const choices = call.requests.length * call.requests[0].n
      const shape = { ...call, choices, id: exchange.id, created: Math.floor(Date.now() / 1000), after: 0 }
      const start = (sink: ReaderSink): ReaderHandle => startCall(call, grant, services.streams, sink)
      respond({ outgoing, exchange, endpoint, heartbeat, log, shape, start })
    }

  app.use(observe(log, services.metrics))
  app.use(refusePages(access))
  app.onError((thrown, c) => {
    sendError(c.env.outgoing, noteError(c.get('exchange'), thrown, log))
    return RESPONSE_ALREADY_SENT
  })
  app.notFound((c) => {
    throw new GatewayError('not_found', `there is no ${c.req.path.slice(0, 128)}`)
  })

  route('POST', '/v1/chat/completions', generate(CHAT, decodeChat))
  route('POST', '/v1/completions', generate(COMPLETION, decodeCompletion))
  routes('/v1/streams/:id', {
    GET: (c) => resume(c, admit(c).tenant, placeIn(c.req.param('id') ?? '', c.env.incoming.headers)),
    DELETE: (c) => {
      services.streams.find(c.req.param('id') ?? '', admit(c).tenant).cancel()
      sendText(c.env.outgoing, 204, '')
    },
  })
  route('GET', '/v1/models', (c) => json(c, encodeModelList(admit(c).models)))
  route('GET', '/v1/models/:id{.+}', (c) => json(c, encodeModelNamed(admit(c).models, c.req.param('id') ?? '')))
  route('POST', '/v1/route', async (c) => {
    const { models, tenant } = admit(c)
    const origin = readOrigin((name) => headerText(c.env.incoming.headers[name]), tenant, c.get('exchange').id)
    json(c, await dryRun(await body(c), origin, { limits, models }))
  })
  route('POST', '/tokenize', async (c) => {
    const { models } = admit(c)
    const { model, prompt, parse_special: parseSpecial = false } = parseBody(tokenizeBodySchema, await body(c))
    const tokens = await models.tokenize(model, checkText(prompt, 'prompt'), parseSpecial)
    json(c, { tokens, count: tokens.length, max_model_len: models.find(model).maxModelLen })
  })
  route('POST', '/detokenize', async (c) => {
    const { models } = admit(c)
    const { model, tokens } = parseBody(detokenizeBodySchema, await body(c))
    const prompt = await models.detokenize(model, decodeTokenIds(tokens, 'tokens', models.vocabSize(model)))
    json(c, { prompt })
  })
  route('GET', '/health', (c) => {
    const report = access.health(tokenOf(c))
    json(c, report, report.status === 'ok' || report.status === 'degraded' ? 200 : 503)
  })
  route('GET', '/metrics', async (c) => {
    admitAdmin(c)
    const text = await services.metrics.metrics()
    sendText(c.env.outgoing, 200, text, { 'content-type': services.metrics.contentType })
  })
  route('GET', '/admin/models', async (c) => {
    admitAdmin(c)
    json(c, encodeResidency(await services.operator.residency(), services.health().config_remarks))
  })
  for (const [name, act] of Object.entries(ADMIN_ACTIONS)) {
    route('POST', `/admin/models/${name}`, async (c) => {
      const { models, key } = admitAdmin(c)
      const variant = namedVariant(await body(c), models)
      log.info({ id: c.get('exchange').id, key, variant, action: name }, 'operator')
      json(c, encodeVariant(await act(services.operator, variant)))
    })
  }
  const openApi = JSON.stringify(openApiDocument())
  route('GET', '/openapi.json', (c) => sendText(c.env.outgoing, 200, openApi))
  return app
}

function json(c: HttpContext, value: object, status = 200): void {
  sendText(c.env.outgoing, status, JSON.stringify(value))
}

function tokenOf(c: HttpContext): string | undefined {
  return bearerToken(c.env.incoming.headers.authorization)
}

function headerText(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value[0] : value
}
