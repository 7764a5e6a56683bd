import type { HealthReport, ModelEntry } from './services.js'

/** What the box's readiness follows from. */
export interface HealthInputs {
  models: readonly ModelEntry[]
  /** The engine session is open. */
  engineUp: boolean
  draining: boolean
}

/** Loading until the engine is there and every model has a rung that is ready or would be loaded for a request; degraded when a rung has failed. Pure. */
export function reportHealth({ models, engineUp, draining }: HealthInputs): HealthReport {
  const states = Object.fromEntries(
    models.map(({ id, variants }) => [
      id,
      Object.fromEntries(variants.map(({ precision, state }) => [precision, state])),
    ]),
  )
  return { status: statusOf(models, engineUp, draining), models: states }
}

function statusOf(models: readonly ModelEntry[], engineUp: boolean, draining: boolean): HealthReport['status'] {
  if (draining) return 'draining'
  const served = models.every(({ variants }) => variants.some(({ state, loadable }) => state === 'ready' || loadable))
  if (!engineUp || !served) return 'loading'
  return models.some(({ variants }) => variants.some(({ state }) => state === 'failed')) ? 'degraded' : 'ok'
}
