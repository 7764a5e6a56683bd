import { KeyedAccess } from '../../gateway/keys/access.js'
import type { KeyEntry } from '../../gateway/keys/key-file.js'
import { newKey } from '../../gateway/keys/secret.js'
import { type FakeScript, type FakeServices, fakeServices } from './fake-services.js'

/** A fake box whose callers need one of its keys. */
export interface KeyedServices extends FakeServices {
  access: KeyedAccess
  /** Texts of the keys by name. */
  keys: Record<string, string>
  entries: KeyEntry[]
}

/** Services with a key for each name; its rights are those of an entry of the key file. */
export function keyedServices(rights: Record<string, Partial<KeyEntry>>, script?: FakeScript): KeyedServices {
  const made = Object.entries(rights).map(([name, given]) => {
    const { id, text, sha256 } = newKey()
    return { text, entry: { id, name, sha256, priority_ceiling: 0, admin: false, ...given } }
  })
  const services = fakeServices(script)
  const entries = made.map(({ entry }) => entry)
  return Object.assign(services, {
    access: new KeyedAccess(services, entries),
    keys: Object.fromEntries(made.map(({ text, entry }) => [entry.name, text])),
    entries,
  })
}
