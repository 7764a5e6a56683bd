import type { BenchRow } from './bench.js'
import { formatBytes } from './units.js'

const COLUMNS = ['through', 'phase', 'batch', 'tokens', 'rate', 'low', 'high', 'milliseconds', 'bytes'] as const

/** One row for people: a rate with its spread, time of a step, bytes read per second. */
export function formatRow({ through, phase, batch, tokens, rate, low, high, milliseconds, bytes }: BenchRow): string {
  const what = `${through.padEnd(6)} ${phase.padEnd(12)} ${batch > 0 ? `batch ${batch}` : ''}`.padEnd(30)
  const time = `${milliseconds.toFixed(3)} ms`.padStart(14)
  if (phase === 'load')
    return `${what}${time}${bytes > 0 ? `, ${formatBytes(bytes)} of weights` : ', process start to first token'}`
  if (phase === 'first token') return `${what}${time}`
  const spread = `${rate.toFixed(0)} tok/s (${low.toFixed(0)} .. ${high.toFixed(0)})`
  const read = bytes > 0 ? `, ${((bytes / milliseconds) * 1e-9).toFixed(2)} TB/s` : ''
  return `${what}${time}, ${phase === 'prefill' ? `${tokens} tokens, ` : ''}${spread}${read}`
}

/** All rows as comma-separated values with a header. */
export function formatCsv(rows: readonly BenchRow[]): string {
  return [COLUMNS.join(','), ...rows.map((row) => COLUMNS.map((column) => row[column]).join(','))].join('\n')
}
