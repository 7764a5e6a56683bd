/** Keeps web pages away from a server that asks for no key. */
import type { MiddlewareHandler } from 'hono'
import { GatewayError } from '../errors.js'
import { isHostLocal, isOriginAllowed } from '../protocols/origin-policy.js'
import type { Access } from '../services.js'
import type { HttpEnv } from './context.js'

/**
 * Refuses with `forbidden` what a foreign page sends, unless callers need keys: a page has none, and one that was given
 * one may use it.
 */
export function refusePages({ keyed }: Access): MiddlewareHandler<HttpEnv> {
  return (c, next) => {
    const { headers, socket } = c.env.incoming
    const { origin, host } = headers
    if (keyed) return next()
    if (!isOriginAllowed({ origin, host, localAddress: socket.localAddress }, [])) {
      throw new GatewayError('forbidden', 'pages of this origin may not use a server without API keys')
    }
    if (!isHostLocal(host)) {
      throw new GatewayError('forbidden', 'without API keys the host must be localhost or an address')
    }
    return next()
  }
}
