import type { EngineStatus } from '../../proto/gen/edgeshift/v1/engine.js'
import type { ModelFacts } from '../router/facts.js'

/** What the banner tells. */
export interface BannerFacts {
  version: string
  /** Addresses as bound, "host:port". */
  http: string
  grpc: string
  models: readonly ModelFacts[]
  /** Clients connect with TLS. */
  secure: boolean
  /** Requests need an API key. */
  keyed: boolean
  status: EngineStatus | undefined
}

/** Bytes in decimal units with three digits: "98.1 MB". */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB']
  let value = bytes
  let unit = 0
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000
    unit++
  }
  return `${unit === 0 ? value : value.toPrecision(3)} ${units[unit]}`
}

/** What a person wants to know once the box serves: where, what is resident, and a command to try. */
export function formatBanner({ version, http, grpc, models, secure, keyed, status }: BannerFacts): string {
  const [first] = models
  const body = JSON.stringify({
    model: first?.id,
    messages: [{ role: 'user', content: 'What is the capital of France?' }],
    // By chance a small model says anything.
    temperature: 0,
  })
  const s = secure ? 's' : ''
  return [
    `edgeshift ${version}`,
    '',
    `  HTTP       http${s}://${http}`,
    `  WebSocket  ws${s}://${http}/v1/chat/ws`,
    `  gRPC       ${grpc}`,
    '',
    ...models.flatMap(variantLines),
    ...kvLines(status),
    '',
    `  curl http${s}://${http}/v1/chat/completions -H 'content-type: application/json'${keyed ? ' -H "authorization: Bearer $KEY"' : ''} -d '${body}'`,
    '',
  ].join('\n')
}

function variantLines({ variants, maxModelLen, tags }: ModelFacts): string[] {
  return variants.map(({ name, state, weightBytes, device, error }, i) => {
    const facts = state === 'ready' ? `${formatBytes(weightBytes).padStart(8)} on ${device}` : `${state} ${error ?? ''}`
    const also = i === 0 ? `, context ${maxModelLen}${tags.length > 0 ? `, also "${tags.join('", "')}"` : ''}` : ''
    return `  ${name.padEnd(20)} ${facts.trimEnd()}${also}`
  })
}

function kvLines(status: EngineStatus | undefined): string[] {
  return (status?.devices ?? []).map(
    ({ id, kvBytes }) => `  ${'KV cache'.padEnd(20)} ${formatBytes(kvBytes).padStart(8)} on ${id}`,
  )
}
