/** Administration over HTTP: what is resident, and what shall be. */
import { z } from 'zod'
import { GatewayError } from '../../errors.js'
import type { ModelDirectory, Operator, Residency, VariantResidency } from '../../services.js'
import { parseBody } from '../fields.js'

/** Body of every POST /admin/models/*. */
export const adminBodySchema = z.strictObject({
  model: z.string().min(1).max(256).describe('"id:rung"; an id or tag alone where the model has one rung.'),
})

/** What can be done to a rung, by the last part of its path. */
export const ADMIN_ACTIONS = {
  load: (operator: Operator, variant: string) => operator.load(variant),
  unload: (operator: Operator, variant: string) => operator.unload(variant),
  pin: (operator: Operator, variant: string) => operator.pin(variant, true),
  unpin: (operator: Operator, variant: string) => operator.pin(variant, false),
} as const

/** The rung that a body names. Throws GatewayError. */
export function namedVariant(body: unknown, models: ModelDirectory): string {
  const { model: name } = parseBody(adminBodySchema, body)
  const { variants } = models.find(name)
  const [first, ...others] = variants
  const named = variants.find((variant) => variant.name === name) ?? (others.length === 0 ? first : undefined)
  if (named) return named.name
  const choice = variants.map((variant) => variant.name).join(', ')
  throw new GatewayError('invalid_request', `name one rung of '${name}': ${choice}`, { param: 'model' })
}

/** The answer of GET /admin/models, with HealthReport.config_remarks. */
export function encodeResidency({ variants, devices }: Residency, remarks: readonly string[] = []): object {
  return {
    variants: variants.map(encodeVariant),
    devices: devices.map(({ id, kind, budgetBytes, usedBytes, driftBytes, ledger }) => ({
      id,
      kind,
      budget_bytes: budgetBytes,
      used_bytes: usedBytes,
      drift_bytes: driftBytes,
      ledger,
    })),
    ...(remarks.length > 0 && { config_remarks: remarks }),
  }
}

/** One rung as administration states it. */
export function encodeVariant(variant: VariantResidency): object {
  const { name, model, state, device, weightBytes, neededBytes, pinned, loads, running, waiting, error } = variant
  const { loadedFrom, loadMs } = variant
  return {
    name,
    model,
    state,
    device,
    weight_bytes: weightBytes,
    needed_bytes: neededBytes,
    pinned,
    loads,
    ...(loads > 0 && { loaded_from: loadedFrom, load_ms: loadMs }),
    running,
    waiting,
    ...(error !== undefined && { error }),
  }
}
