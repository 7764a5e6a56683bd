/** Who may use what: with a key file by key, without one everybody that reaches the loopback address. */
import { createHash } from 'node:crypto'
import { GatewayError } from '../errors.js'
import type { Access, Grant, HealthReport, Services } from '../services.js'
import { GuardedGenerator, ScopedModels } from './guard.js'
import type { KeyEntry } from './key-file.js'
import { Meter } from './meter.js'
import { digestOf, idOf, sameDigest } from './secret.js'

/** What grants are cut from. */
export type Granted = Pick<Services, 'generator' | 'models' | 'health'>

/** Everybody may use everything; a bearer token only keeps its holders apart from others. */
export function openAccess({ generator, models, health }: Granted): Access {
  return {
    keyed: false,
    admit: (token) => ({ tenant: token === undefined ? '' : tenantOf(token), admin: true, generator, models }),
    health: () => health(),
  }
}

/** Sixteen hexadecimal digits that tell tokens apart without holding them. */
function tenantOf(token: string): string {
  return createHash('sha256').update(token).digest('hex').slice(0, 16)
}

interface Admitted {
  digest: Buffer
  grant: Grant
}

/** Compared with where there is no entry, so that unknown ids take as long as known ones. */
const NO_DIGEST = Buffer.alloc(32)

/** Access by key. Owns a meter for each. */
export class KeyedAccess implements Access {
  readonly keyed = true
  readonly #granted: Granted
  readonly #now: () => number
  #keys = new Map<string, Admitted>()
  #meters = new Map<string, Meter>()

  /** `now`: milliseconds, monotonic. */
  constructor(granted: Granted, entries: readonly KeyEntry[], now: () => number = () => performance.now()) {
    this.#granted = granted
    this.#now = now
    this.use(entries)
  }

  /** Replaces the keys; consumption of those that stay is kept. */
  use(entries: readonly KeyEntry[]): void {
    const meters = new Map<string, Meter>()
    const keys = new Map<string, Admitted>()
    for (const entry of entries) {
      const rates = { requestsPerMinute: entry.requests_per_minute, tokensPerMinute: entry.tokens_per_minute }
      const meter = this.#meters.get(entry.id) ?? new Meter(rates, this.#now)
      meter.setRates(rates)
      meters.set(entry.id, meter)
      keys.set(entry.id, { digest: Buffer.from(entry.sha256, 'hex'), grant: this.#grant(entry, meter) })
    }
    this.#keys = keys
    this.#meters = meters
  }

  admit(token: string | undefined): Grant {
    const grant = this.#find(token)
    if (grant) return grant
    const problem = token === undefined ? 'an API key is required' : 'the API key is not valid'
    throw new GatewayError('unauthorized', `${problem}; send "authorization: Bearer KEY"`)
  }

  /** The state of the models that the key may use; without a key only that of the box, for probes. */
  health(token: string | undefined): HealthReport {
    const { status, models } = this.#granted.health()
    const seen = this.#find(token)?.models.list() ?? []
    return { status, models: Object.fromEntries(seen.flatMap(({ id }) => (models[id] ? [[id, models[id]]] : []))) }
  }

  #find(token: string | undefined): Grant | undefined {
    if (token === undefined) return undefined
    const known = this.#keys.get(idOf(token) ?? '')
    return sameDigest(digestOf(token), known?.digest ?? NO_DIGEST) ? known?.grant : undefined
  }

  #grant(entry: KeyEntry, meter: Meter): Grant {
    const { id, name, models: allowed, priority_ceiling: ceiling, class: urgency, admin } = entry
    const { generator, models } = this.#granted
    const scoped = allowed ? new ScopedModels(models, new Set(allowed)) : models
    return {
      tenant: id,
      key: name,
      admin,
      models: scoped,
      generator: new GuardedGenerator(generator, scoped, { ceiling, urgency }, meter),
    }
  }
}
