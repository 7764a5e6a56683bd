/**
 * Which web pages may open a chat socket or, where there are no keys, do anything. Browsers let any page connect
 * anywhere; only the headers Origin and Host tell.
 */
import { isIP } from 'node:net'

/** The facts of a request that decide. */
export interface PageOrigin {
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
export function isOriginAllowed({ origin, host, localAddress }: PageOrigin, allowed: readonly string[]): boolean {
  if (origin === undefined) return true
  if (allowed.includes('*') || allowed.includes(origin)) return true
  const url = URL.canParse(origin) ? new URL(origin) : undefined
  if (!url) return false
  if (isLoopbackHost(url.hostname)) return true
  return !isLoopbackAddress(localAddress) && url.host === host?.toLowerCase()
}

/** What containers call the machine they run on; no other name resolves to its loopback by itself. */
const CONTAINER_NAMES: ReadonlySet<string> = new Set(['host.docker.internal', 'host.containers.internal'])

/**
 * True for a Host header that no hostile page can bring about: a loopback name, or an address. A page of a hostile name
 * that now resolves to 127.0.0.1 is this server's own to the browser, and a GET of it has no Origin.
 */
export function isHostLocal(host: string | undefined): boolean {
  const url = `http://${host ?? ''}`
  if (!URL.canParse(url)) return false
  const { hostname } = new URL(url)
  return isLoopbackHost(hostname) || CONTAINER_NAMES.has(hostname) || isAddress(hostname)
}

/** An address cannot be made to resolve to another one. */
function isAddress(hostname: string): boolean {
  return isIP(hostname.replace(/^\[(.*)\]$/, '$1')) !== 0
}

function isLoopbackHost(hostname: string): boolean {
  if (hostname === 'localhost' || hostname.endsWith('.localhost') || hostname === '[::1]') return true
  return isIP(hostname) === 4 && hostname.startsWith('127.')
}

function isLoopbackAddress(address: string | undefined): boolean {
  // A unix socket has no address and is as local as loopback.
  return address === undefined || address === '::1' || /^(::ffff:)?127\./.test(address)
}
