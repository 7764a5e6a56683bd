/** Who may use what: with a key file by key, without one everybody that reaches the loopback address. */
import { createHash } from 'node:crypto'
import { GatewayError } from '../errors.js'
import type { Access, Grant, HealthReport, Services } from '../services.js'
import { type Account, GuardedGenerator, ScopedModels } from './guard.js'
import type { KeyEntry } from './key-file.js'
import { Meter } from './meter.js'
import { Quota } from './quota.js'
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

/** Access by key. Owns an account for each. */
export class KeyedAccess implements Access {
  readonly keyed = true
  readonly #granted: Granted
  readonly #now: () => number
  #keys = new Map<string, Admitted>()
  #accounts = new Map<string, Account>()

  /** `now`: milliseconds, monotonic. */
  constructor(granted: Granted, entries: readonly KeyEntry[], now: () => number = () => performance.now()) {
    this.#granted = granted
    this.#now = now
    this.use(entries)
  }

  /** Replaces the keys; consumption of those that stay is kept. */
  use(entries: readonly KeyEntry[]): void {
    const accounts = new Map<string, Account>()
    const keys = new Map<string, Admitted>()
    for (const entry of entries) {
      const account = this.#account(entry)
      accounts.set(entry.id, account)
      keys.set(entry.id, { digest: Buffer.from(entry.sha256, 'hex'), grant: this.#grant(entry, account) })
    }
    this.#keys = keys
    this.#accounts = accounts
  }

  admit(token: string | undefined): Grant {
    const grant = this.#find(token)
    if (grant) return grant
    const problem = token === undefined ? 'an API key is required' : 'the API key is not valid'
    throw new GatewayError('unauthorized', `${problem}; send "authorization: Bearer KEY"`)
  }

  /** All of it for admin keys, else the state of the models that the key may use; without a key only that of the box, for probes. */
  health(token: string | undefined): HealthReport {
    const report = this.#granted.health()
    const grant = this.#find(token)
    if (grant?.admin) return report
    const { status, models } = report
    const seen = grant?.models.list() ?? []
    return { status, models: Object.fromEntries(seen.flatMap(({ id }) => (models[id] ? [[id, models[id]]] : []))) }
  }

  #find(token: string | undefined): Grant | undefined {
    if (token === undefined) return undefined
    const known = this.#keys.get(idOf(token) ?? '')
    return sameDigest(digestOf(token), known?.digest ?? NO_DIGEST) ? known?.grant : undefined
  }

  /** What the key has used so far, with its rates and bounds as they are now. */
  #account(entry: KeyEntry): Account {
    const rates = { requestsPerMinute: entry.requests_per_minute, tokensPerMinute: entry.tokens_per_minute }
    const bounds = { maxConcurrent: entry.max_concurrent, maxWaiting: entry.max_waiting }
    const known = this.#accounts.get(entry.id)
    known?.meter.setRates(rates)
    known?.quota.setBounds(bounds)
    return known ?? { meter: new Meter(rates, this.#now), quota: new Quota(bounds, this.#now) }
  }

  #grant({ id, name, models: allowed, admin, ...entry }: KeyEntry, account: Account): Grant {
    const { generator, models } = this.#granted
    const scoped = allowed ? new ScopedModels(models, new Set(allowed)) : models
    const standing = { ceiling: entry.priority_ceiling, urgency: entry.class, weight: entry.weight }
    return {
      tenant: id,
      key: name,
      admin,
      models: scoped,
      generator: new GuardedGenerator(generator, scoped, standing, account),
    }
  }
}
