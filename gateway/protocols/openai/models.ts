/** The model directory as GET /v1/models states it. */
import type { Derivation, Quality } from '../../../proto/gen/edgeshift/v1/card.js'
import type { ModelFacts, RungFacts } from '../../router/facts.js'
import { canServe, whyNotResident } from '../../router/standing.js'
import type { ModelDirectory } from '../../services.js'

/** All models, in OpenAI's list object. */
export function encodeModelList(models: ModelDirectory): object {
  return { object: 'list', data: models.list().map((model) => encodeModel(model, model.id)) }
}

/** One model by id, id:rung or tag; a rung lists only itself. Throws model_not_found. */
export function encodeModelNamed(models: ModelDirectory, name: string): object {
  const model = models.find(name)
  const rung = model.variants.find((variant) => variant.name === name)
  return rung ? encodeModel({ ...model, variants: [rung] }, rung.name) : encodeModel(model, model.id)
}

function encodeModel(
  { created, tags, maxModelLen, variants, level, levelCause, flapping }: ModelFacts,
  id: string,
): object {
  return {
    id,
    object: 'model',
    created,
    owned_by: 'edgeshift',
    status: overallState(variants),
    tags,
    max_model_len: maxModelLen,
    rung: level ?? null,
    ...(levelCause && { degraded: levelCause }),
    ...(flapping && { flapping }),
    variants: variants.map(encodeVariant),
  }
}

/** Figures that nobody has measured yet are left out. */
function encodeVariant(rung: RungFacts): object {
  const { name, precision, state, weightBytes, neededBytes, device, error, breaker, pinned, loads } = rung
  const { derivation, measured } = rung
  const why = whyNotResident(rung)
  return {
    id: name,
    precision,
    status: state,
    serves: canServe(rung),
    weight_bytes: weightBytes,
    needed_bytes: neededBytes,
    device,
    max_model_len: rung.maxModelLen,
    quality: rung.quality,
    ...(rung.tokensPerSecond > 0 && { tokens_per_second: rounded(rung.tokensPerSecond) }),
    pinned,
    loads,
    breaker: breaker.state,
    ...(why !== undefined && { why }),
    ...(derivation && { derivation: encodeDerivation(derivation) }),
    ...(measured && { measured_quality: encodeQuality(measured) }),
    ...(error !== undefined && { error }),
  }
}

function rounded(value: number): number {
  return Math.round(value * 10) / 10
}

function encodeDerivation({ method, groupSize, relativeError }: Derivation): object {
  return { method, group_size: groupSize, relative_error: relativeError }
}

function encodeQuality({ perplexity, referencePerplexity, text }: Quality): object {
  return { perplexity, reference_perplexity: referencePerplexity, text }
}

const BEST_FIRST = ['ready', 'loading', 'unloaded', 'failed'] as const

/** A model is as ready as its readiest rung. */
function overallState(variants: readonly RungFacts[]): string {
  return BEST_FIRST.find((state) => variants.some((variant) => variant.state === state)) ?? 'unloaded'
}
