/** The dry run, the same over every protocol: what would serve a request, what would be loaded, evicted or waited for; nothing is done. */
import { z } from 'zod'
import { toGatewayError } from '../errors.js'
import type { GenerateRequest } from '../request.js'
import { decideRoute } from '../router/decide.js'
import { describeDecision, type DryRun } from '../router/dry-run.js'
import type { RouteRequest } from '../router/facts.js'
import { AUTO, findTarget } from '../router/target.js'
import type { ModelDirectory } from '../services.js'
import { chatBodySchema } from './body.js'
import { decodeChat, decodeCompletion, type DecodeServices } from './decode.js'
import { isRecord, parseBody } from './fields.js'
import { needFields, toNeeds } from './needs.js'
import type { Origin } from './origin.js'

/** A request by its size alone. The body may also be that of a chat or a completion, whole. */
export const routeBodySchema = z.strictObject({
  model: chatBodySchema.shape.model,
  prompt_tokens: z.int().min(0).max(10_000_000).optional().describe('Length of the prompt. Default 0: not known.'),
  max_tokens: z.int().min(0).optional().describe('Most tokens of the answer.'),
  ...needFields,
})

/** Decides for a chat, a completion or a request known by its size. Throws GatewayError for a body at fault. */
export async function dryRun(body: unknown, origin: Origin, services: DecodeServices): Promise<DryRun> {
  const { models } = services
  const request = await toRouteRequest(body, origin, services)
  const facts = models.list()
  const result = decideRoute(request, facts)
  const served = result.kind === 'serve' ? facts.find(({ id }) => id === result.route.model) : undefined
  const about = served ?? (request.model === AUTO ? undefined : findTarget(request.model, facts)?.model)
  return describeDecision(request, result, facts, about)
}

async function toRouteRequest(body: unknown, origin: Origin, services: DecodeServices): Promise<RouteRequest> {
  if (isRecord(body) && body['messages'] !== undefined) {
    return sized(decodeChat(body, origin, services).requests[0], services.models)
  }
  if (isRecord(body) && body['prompt'] !== undefined) {
    return sized(decodeCompletion(body, origin, services).requests[0], services.models)
  }
  const { model, prompt_tokens: promptTokens = 0, max_tokens: maxTokens, ...fields } = parseBody(routeBodySchema, body)
  if (model !== AUTO) services.models.find(model)
  const deadlines = [fields.deadline_ms, origin.deadlineMs].flatMap((deadline) => deadline ?? [])
  const deadlineMs = deadlines.length > 0 ? Math.min(...deadlines) : 0
  const bound = maxTokens === undefined ? {} : { maxTokens }
  return { model, promptTokens, deadlineMs, ...bound, ...toNeeds(fields, origin.needs) }
}

/** While the model's text side is not there yet, the prompt's length is not known. */
async function sized(request: GenerateRequest, models: ModelDirectory): Promise<RouteRequest> {
  try {
    return { ...request, promptTokens: await models.countTokens(request.model, request.input, request.tenant) }
  } catch (error) {
    const known = toGatewayError(error)
    if (known.code !== 'loading') throw known
    return { ...request, promptTokens: 0 }
  }
}
