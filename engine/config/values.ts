import { availableParallelism } from 'node:os'
import { z } from 'zod'

/** Where a server listens. */
export interface Address {
  host: string
  port: number
}

/** The longest time that setTimeout takes, milliseconds: 24.8 days. More would end at once. */
export const MAX_TIMER_MS = 2 ** 31 - 1

const ADDRESS = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/
const DURATION = /^(\d{1,9})(ms|s|m|h)$/
const HOUR_MS = 3_600_000
const UNITS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: HOUR_MS }
/** Whole hours: a timer may wait for what comes after such a duration as well. */
const LONGEST_HOURS = Math.floor(MAX_TIMER_MS / HOUR_MS)
/** The longest duration that is given to a timer, as the file has it. */
export const LONGEST_DURATION = `${LONGEST_HOURS}h`

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

/** "500ms", "60s", "10m" or "1h"; milliseconds after parsing. Of any length: a timer must not be given it as it is. */
export const anyDuration = () => parsed(DURATION, parseDuration, 'a duration such as 500ms, 60s, 10m or 1h')

/** The same for what a timer waits for: at most LONGEST_DURATION. */
export const duration = () =>
  anyDuration().refine(
    (ms) => ms <= LONGEST_HOURS * HOUR_MS,
    `longer than a timer can wait; at most ${LONGEST_DURATION}`,
  )

/** The same for what may not happen at once. */
export const positiveDuration = () => duration().refine((ms) => ms > 0, 'expected more than 0')

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
