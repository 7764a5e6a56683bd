/** `model: "auto"`: which model a request means, before anything is done for it. */
import { GatewayError } from '../errors.js'
import type { GenerateInput, GenerateRequest, Needs } from '../request.js'
import { decideRoute } from '../router/decide.js'
import { difficultyOf } from '../router/difficulty.js'
import { AUTO } from '../router/target.js'
import type { ModelDirectory } from '../services.js'

/** What the choice depends on. */
interface Asked extends Needs {
  model: string
  input: GenerateInput
  maxTokens?: number
  deadlineMs: number
}

/** Characters of ordinary text per token. */
const CHARACTERS_PER_TOKEN = 4

/**
 * The model by its id, with the difficulty by which its rung is chosen; any other name stays as it is. Throws the
 * refusal when no model may or can serve.
 */
export function chooseModel(
  asked: Asked,
  models: Pick<ModelDirectory, 'list'>,
): Pick<GenerateRequest, 'model' | 'difficulty'> {
  if (asked.model !== AUTO) return { model: asked.model }
  const difficulty = difficultyOf(asked.input)
  const result = decideRoute({ ...asked, promptTokens: estimateTokens(asked.input), difficulty }, models.list())
  if (result.kind === 'serve') return { model: result.route.model, difficulty }
  if (result.kind === 'refuse') throw new GatewayError(result.refusal.code, result.refusal.message, result.refusal)
  const coming = models.list().find(({ variants }) => variants.some(({ state }) => state === 'loading'))
  return { model: coming?.id ?? AUTO, difficulty }
}

/** Fewer than there will be, so that nothing is excluded that would fit. */
function estimateTokens(input: GenerateInput): number {
  if (input.kind === 'tokens') return input.tokens.length
  const texts = input.kind === 'text' ? [input.text] : input.messages.map(({ content }) => content)
  return Math.floor(texts.reduce((sum, text) => sum + text.length, 0) / (2 * CHARACTERS_PER_TOKEN))
}
