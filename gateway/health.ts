import type { ModelFacts, RungFacts } from './router/facts.js'
import { standingOf } from './router/standing.js'
import type { HealthReport, RungState } from './services.js'

/** What the box's readiness follows from. */
export interface HealthInputs {
  models: readonly ModelFacts[]
  /** The engine session is open. */
  engineUp: boolean
  draining: boolean
  /** HealthReport.config_remarks. */
  config: readonly string[]
}

/**
 * Loading until the engine is there and every model has a rung that serves or none that is coming; degraded when a rung
 * failed or keeps failing, or a model stands below its best rung. Pure.
 */
export function reportHealth({ models, engineUp, draining, config }: HealthInputs): HealthReport {
  const states = models.map(({ id, variants }) => [
    id,
    Object.fromEntries(variants.map((rung) => [rung.precision, stateOf(rung)])),
  ])
  const alarms = models
    .filter(({ flapping }) => flapping)
    .map(({ id, level }) => `'${id}' moves to and fro; it stays at ${level}`)
  const status = draining ? 'draining' : statusOf(models, engineUp)
  return {
    status,
    models: Object.fromEntries(states),
    ...(alarms.length > 0 && { alarms }),
    ...(config.length > 0 && { config_remarks: config }),
  }
}

function stateOf(rung: RungFacts): RungState {
  const { breaker, state, loadable, queueable } = rung
  if (breaker.state === 'open') return 'broken'
  return state !== 'ready' && state !== 'loading' && (loadable || queueable) ? 'on_demand' : state
}

const serves = (rung: RungFacts): boolean => ['usable', 'queue'].includes(standingOf(rung).kind)
const isComing = (rung: RungFacts): boolean => standingOf(rung).kind === 'coming'

const isBroken = ({ state, breaker }: RungFacts): boolean => state === 'failed' || breaker.state === 'open'

function isDegraded({ variants, level }: ModelFacts): boolean {
  return level !== variants[0]?.name || variants.some(isBroken)
}

function statusOf(models: readonly ModelFacts[], engineUp: boolean): HealthReport['status'] {
  const unserved = models.filter(({ variants }) => !variants.some(serves))
  const coming = unserved.some(({ variants }) => variants.some(isComing))
  if (!engineUp || coming || unserved.length === models.length) return 'loading'
  return models.some(isDegraded) ? 'degraded' : 'ok'
}
