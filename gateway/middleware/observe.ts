/** Request ids, one log line and two metrics per exchange. */
import type { IncomingMessage } from 'node:http'
import type { MiddlewareHandler } from 'hono'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { PairCounter } from '../pair-counter.js'
import { cleanClientId, newRequestId, validTraceparent } from '../protocols/origin.js'
import { type HistogramSeries, StepHistogram } from '../step-histogram.js'
import type { Exchange, HttpEnv } from './context.js'

const DURATION_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]

/** Gives every exchange its id (also as x-request-id) and reports it when its response closes. */
export function observe(log: Logger, registry: Registry): MiddlewareHandler<HttpEnv> {
  const requests = new PairCounter(
    registry,
    'edgeshift_http_requests_total',
    'HTTP exchanges by route and status; 499 = the client went away first.',
    ['route', 'status'],
  )
  const duration = new StepHistogram(
    registry,
    'edgeshift_http_request_duration_seconds',
    'Time from the request headers to the end of the response.',
    DURATION_BUCKETS,
  )
  const durations = new Map<string, HistogramSeries>()
  const observeDuration = (route: string, seconds: number): void => {
    let series = durations.get(route)
    if (series === undefined) durations.set(route, (series = duration.series({ route })))
    series.observe(seconds)
  }
  return (c, next) => {
    const { incoming, outgoing } = c.env
    const start = performance.now()
    const exchange: Exchange = { id: newRequestId(), route: 'unmatched' }
    c.set('exchange', exchange)
    outgoing.setHeader('x-request-id', exchange.id)
    let complete = false
    // Before Node's own listener, which may close the socket; a destroyed one also reports that it has finished.
    outgoing.prependOnceListener('finish', () => {
      complete = !incoming.socket.destroyed
    })
    outgoing.once('close', () => {
      const seconds = (performance.now() - start) / 1000
      const status = complete ? outgoing.statusCode : 499
      requests.inc(exchange.route, String(status))
      observeDuration(exchange.route, seconds)
      // A generation has its own line, which says more; a second one for each would cost a tenth of the throughput.
      const level = exchange.variant === undefined ? 'info' : 'debug'
      if (log.isLevelEnabled(level)) log[level](logFields(exchange, incoming, status, seconds), 'request')
    })
    return next()
  }
}

/** Nothing of body or query: a prompt never reaches the log from here. */
function logFields(
  { id, route, key, variant, error }: Exchange,
  { method, headers }: IncomingMessage,
  status: number,
  seconds: number,
): object {
  const clientId = headers['x-request-id']
  return {
    id,
    method,
    route,
    status,
    key,
    ms: Math.round(seconds * 1e5) / 100,
    variant,
    error,
    clientRequestId: typeof clientId === 'string' ? cleanClientId(clientId) : undefined,
    traceparent: validTraceparent(headerText(headers['traceparent'])),
  }
}

function headerText(value: string | string[] | undefined): string | undefined {
  return typeof value === 'string' ? value : undefined
}
