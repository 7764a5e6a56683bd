import { availableParallelism } from 'node:os'
import { z } from 'zod'

/** Where a server listens. */
export interface Address {
  host: string
  port: number
}

const ADDRESS = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/
const DURATION = /^(\d{1,9})(ms|s|m|h)$/
const UNITS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }

function parseAddress(text: string): Address | undefined {
  const [, v6, name, digits] = ADDRESS.exec(text) ?? []
  const host = v6 ?? name
  const port = Number(digits)
  return host === undefined || port > 65_535 ? undefined : { host, port }
}

function parseDuration(text: string): number | undefined {
  const [, count, unit] = DURATION.exec(text) ?? []
  const factor = UNITS[unit ?? '']
  return factor === undefined ? undefined : Number(count) * factor
}

/** A string that `parse` turns into a value; `expected` says what it must look like. */
function parsed<T>(pattern: RegExp, parse: (text: string) => T | undefined, expected: string) {
  return z
    .string()
    .meta({ pattern: pattern.source })
    .transform((text, context) => {
      const value = parse(text)
      if (value !== undefined) return value
      context.addIssue({ code: 'custom', message: `expected ${expected}, found ${JSON.stringify(text)}` })
      return z.NEVER
    })
}

/** "host:port" or "[ipv6]:port"; port 0 lets the system choose. */
export const address = () => parsed(ADDRESS, parseAddress, 'host:port, e.g. 127.0.0.1:8080')

/** "500ms", "60s", "10m" or "1h"; milliseconds after parsing. */
export const duration = () => parsed(DURATION, parseDuration, 'a duration such as 500ms, 60s, 10m or 1h')

/** "auto" (every core this process may use) or a number. */
export const threads = () =>
  z
    .union([z.literal('auto'), z.int().min(1).max(1024)], { error: 'expected auto or a whole number from 1 to 1024' })
    .transform((value) => (value === 'auto' ? availableParallelism() : value))

/** A size in GB (10^9 bytes) as people write it; fractions are allowed. */
export const gigabytes = () => z.number().min(0).max(1_000_000)

/** Bytes in a size of the file. */
export function gigabytesToBytes(size: number): number {
  return Math.floor(size * 1e9)
}

/** True for addresses that only this machine reaches. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){3}$/.test(host)
}
