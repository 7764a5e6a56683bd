import type { BenchDevice, BenchPlan, BenchRow } from './bench.js'
import { formatBytes } from './units.js'

const COLUMNS = [
  'through',
  'phase',
  'batch',
  'tokens',
  'rate',
  'low',
  'high',
  'milliseconds',
  'bytes',
  'share',
] as const

/** What the rows are and how they were taken. */
export function formatHead(what: string, { device, repeat }: BenchPlan): string {
  return `${what} on ${device.kind}:${device.index}; native: steps straight into the addon, stack: a stream over HTTP through gateway and engine
after 1 run to warm up the median of ${repeat}, with the least and the most`
}

/** What the device could read and what the model takes on it. */
export function formatDevice({ readBandwidth, weightBytes, workspaceBytes }: BenchDevice): string {
  return `read bandwidth ${formatRate(readBandwidth)}; resident: ${formatBytes(weightBytes)} of weights, ${formatBytes(workspaceBytes)} of workspace`
}

const formatRate = (bytesPerSecond: number): string =>
  bytesPerSecond >= 1e12 ? `${(bytesPerSecond / 1e12).toFixed(2)} TB/s` : `${(bytesPerSecond / 1e9).toFixed(1)} GB/s`

/** One row for people: time of a step, a rate with its spread, bytes read per second and the share of the limit. */
export function formatRow({
  through,
  phase,
  batch,
  tokens,
  rate,
  low,
  high,
  milliseconds,
  bytes,
  share,
}: BenchRow): string {
  const what = `${through.padEnd(6)} ${phase.padEnd(12)} ${batch > 0 ? `batch ${batch}` : ''}`.padEnd(30)
  const time = `${milliseconds.toFixed(3)} ms`.padStart(14)
  if (phase === 'load')
    return `${what}${time}${bytes > 0 ? `, ${formatBytes(bytes)} of weights` : ', process start to first token'}`
  if (phase === 'first token') return `${what}${time}`
  const spread = `${rate.toFixed(0)} tok/s (${low.toFixed(0)} .. ${high.toFixed(0)})`
  const read =
    share > 0 ? `, ${formatRate((bytes / milliseconds) * 1000)}, ${(share * 100).toFixed(0)}% of the limit` : ''
  return `${what}${time}, ${phase === 'prefill' ? `${tokens} tokens, ` : ''}${spread}${read}`
}

/** All rows as comma-separated values with a header. */
export function formatCsv(rows: readonly BenchRow[]): string {
  return [COLUMNS.join(','), ...rows.map((row) => COLUMNS.map((column) => row[column]).join(','))].join('\n')
}
