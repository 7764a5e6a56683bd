import type { ModelFacts, RungFacts } from './facts.js'

/** The name that leaves the choice of the model to the router. */
export const AUTO = 'auto'

/** What a client's name means: a model, and one rung of it when the client named one. */
export interface Target {
  model: ModelFacts
  rung: RungFacts | undefined
}

/** Finds id, id:rung or tag, in this order; the first model with a tag has it. Undefined when nothing matches. */
export function findTarget(name: string, models: readonly ModelFacts[]): Target | undefined {
  const byId = models.find((model) => model.id === name)
  if (byId) return { model: byId, rung: undefined }
  for (const model of models) {
    const rung = model.variants.find((variant) => variant.name === name)
    if (rung) return { model, rung }
  }
  const byTag = models.find((model) => model.tags.includes(name))
  return byTag && { model: byTag, rung: undefined }
}
