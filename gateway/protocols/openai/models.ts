/** The model directory as GET /v1/models states it. */
import type { ModelDirectory, ModelEntry, VariantEntry } from '../../services.js'

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

function encodeModel({ created, tags, maxModelLen, variants }: ModelEntry, id: string): object {
  return {
    id,
    object: 'model',
    created,
    owned_by: 'edgeshift',
    status: overallState(variants),
    tags,
    max_model_len: maxModelLen,
    variants: variants.map(encodeVariant),
  }
}

function encodeVariant({ name, precision, state, weightBytes, device, error }: VariantEntry): object {
  const failure = error === undefined ? {} : { error }
  return { id: name, precision, status: state, weight_bytes: weightBytes, device, ...failure }
}

const BEST_FIRST = ['ready', 'loading', 'unloaded', 'failed'] as const

/** A model is as ready as its readiest rung. */
function overallState(variants: readonly VariantEntry[]): string {
  return BEST_FIRST.find((state) => variants.some((variant) => variant.state === state)) ?? 'unloaded'
}
