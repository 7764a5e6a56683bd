/** Which web pages may open a chat socket. Browsers let any page connect anywhere; only the Origin header tells. */
import { isIP } from 'node:net'

/** The facts of an upgrade request that decide. */
export interface UpgradeOrigin {
  /** The Origin header; programs that are not browsers send none. */
  origin: string | undefined
  host: string | undefined
  /** The server's address on this connection. */
  localAddress: string | undefined
}

/**
 * True when the page may connect: no origin, a loopback page, one that `allowed` lists ("*" = any), or the same
 * origin. Same origin does not count over loopback, where a hostile name that resolves to 127.0.0.1 would pass.
 */
export function isOriginAllowed({ origin, host, localAddress }: UpgradeOrigin, allowed: readonly string[]): boolean {
  if (origin === undefined) return true
  if (allowed.includes('*') || allowed.includes(origin)) return true
  const url = URL.canParse(origin) ? new URL(origin) : undefined
  if (!url) return false
  if (isLoopbackHost(url.hostname)) return true
  return !isLoopbackAddress(localAddress) && url.host === host?.toLowerCase()
}

function isLoopbackHost(hostname: string): boolean {
  if (hostname === 'localhost' || hostname.endsWith('.localhost') || hostname === '[::1]') return true
  return isIP(hostname) === 4 && hostname.startsWith('127.')
}

function isLoopbackAddress(address: string | undefined): boolean {
  // A unix socket has no address and is as local as loopback.
  return address === undefined || address === '::1' || /^(::ffff:)?127\./.test(address)
}
