/** What a request carries through Hono. */
import type { HttpBindings } from '@hono/node-server'
import type { Context } from 'hono'
import type { ErrorCode } from '../errors.js'

/** What is known about one exchange, for its log line and metrics. */
export interface Exchange {
  /** Ours: "req-...". */
  id: string
  /** The matched route's pattern; "unmatched" until there is one. */
  route: string
  /** Name of the caller's key. */
  key?: string
  /** The rung that served it. */
  variant?: string
  /** How it failed. */
  error?: ErrorCode
}

/** Hono's type parameters of this server: handlers write to the raw response. */
export interface HttpEnv {
  Bindings: HttpBindings
  Variables: { exchange: Exchange }
}

/** Context of a handler. */
export type HttpContext = Context<HttpEnv>
