/**
 * API keys of browsers, which can set no header on a WebSocket but its subprotocols: a client offers "edgeshift" and
 * "edgeshift-key.KEY"; the first is chosen, so that the key is not sent back.
 */

const PROTOCOL = 'edgeshift'
const KEY_PREFIX = 'edgeshift-key.'

/** The key among the offered subprotocols. */
export function keyOf(offered: string | undefined): string | undefined {
  const entry = offered?.split(',').find((name) => name.trim().startsWith(KEY_PREFIX))
  return entry?.trim().slice(KEY_PREFIX.length)
}

/** The subprotocol to answer with: ours, else the first that holds no key; false = none. */
export function chooseProtocol(offered: ReadonlySet<string>): string | false {
  if (offered.has(PROTOCOL)) return PROTOCOL
  return [...offered].find((name) => !name.startsWith(KEY_PREFIX)) ?? false
}
