import type { ModelEntry, VariantEntry } from '../services.js'

/** The rung that serves a request, and why this one. */
export interface Route {
  /** Id of the model. */
  model: string
  /** "model:rung". */
  variant: string
  reason: string
}

/** What can be done for a name now: serve it, wait for a rung that is coming, or give up on it. */
export type RouteResult =
  | { kind: 'serve'; route: Route }
  | { kind: 'wait'; why: string }
  | { kind: 'failed'; why: string }

/** What a client's name means: a model, and one rung of it when the client named one. */
export interface Target {
  model: ModelEntry
  rung: VariantEntry | undefined
}

/** Finds id, id:rung or tag, in this order; the first model with a tag has it. Undefined when nothing matches. */
export function findTarget(name: string, models: readonly ModelEntry[]): Target | undefined {
  const byId = models.find((model) => model.id === name)
  if (byId) return { model: byId, rung: undefined }
  for (const model of models) {
    const rung = model.variants.find((variant) => variant.name === name)
    if (rung) return { model, rung }
  }
  const byTag = models.find((model) => model.tags.includes(name))
  return byTag && { model: byTag, rung: undefined }
}

/** Chooses the rung: the named one or else the highest that is ready (variants come best precision first). Pure. */
export function chooseRung({ model, rung }: Target): RouteResult {
  if (rung) return routeNamed(model.id, rung)
  const ready = model.variants.findIndex((variant) => variant.state === 'ready')
  const best = model.variants[ready]
  if (best) {
    const reason = reasonFor(model.variants.slice(0, ready))
    return { kind: 'serve', route: { model: model.id, variant: best.name, reason } }
  }
  const why = `no rung of '${model.id}' is ready (${model.variants.map(describeState).join(', ')})`
  const coming = model.variants.some((variant) => variant.state === 'loading')
  return coming ? { kind: 'wait', why } : { kind: 'failed', why }
}

function routeNamed(model: string, rung: VariantEntry): RouteResult {
  if (rung.state === 'ready') return { kind: 'serve', route: { model, variant: rung.name, reason: 'requested' } }
  const why = `'${rung.name}' is ${describeState(rung)}`
  return rung.state === 'loading' ? { kind: 'wait', why } : { kind: 'failed', why }
}

function reasonFor(better: readonly VariantEntry[]): string {
  return better.length === 0 ? 'highest rung' : `highest ready rung; ${better.map(describeState).join(', ')}`
}

function describeState({ precision, state }: VariantEntry): string {
  return `${precision} ${state}`
}
