import { basename } from 'node:path'
import type { Inspection, RungReport, StorageGroup } from './inspect.js'
import { formatBytes, formatCount } from './units.js'

const HASH_ORIGINS = { hub: 'as downloaded', record: 'as recorded' }

/** The inspection for people. */
export function formatInspection(report: Inspection): string {
  const { name, architecture, format, parameters, layers, contextLength, files, licence } = report
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0)
  return [
    `${name}: ${architecture}, ${format}, ${formatCount(parameters)} parameters, ${layers} layers`,
    `  context    ${contextLength} tokens, ${formatBytes(report.kvBytesPerToken)} of KV cache each`,
    `  files      ${files.length} with weights, ${formatBytes(bytes)}`,
    ...files.flatMap(({ file, hashes }) =>
      hashes.map(({ hash, from }) => `             ${hash}  ${basename(file)} (${HASH_ORIGINS[from]})`),
    ),
    `  licence    ${licence ?? 'not stated'}`,
    `  template   ${report.chatTemplate ? 'has a chat template' : 'no chat template'}`,
    '',
    ...report.storage.map(storageLine),
    '',
    ...report.rungs.flatMap(rungLines),
    ...report.notices.map((notice) => `\n  notice: ${notice}`),
    ...report.problems.map((problem) => `\n  problem: ${problem}`),
    '',
  ].join('\n')
}

function storageLine({ module, storage, layers, bytes }: StorageGroup): string {
  const place = layers === '' ? '' : ` in layers ${layers}`
  return `  ${module.padEnd(16)} ${formatBytes(bytes).padStart(8)}  ${storage}${place}`
}

function rungLines({ precision, origin, weightBytes, devices, quality, roundingError }: RungReport): string[] {
  const where = Object.entries(devices).map(([id, answer]) => `    on ${id}: ${answer}`)
  const facts = [
    roundingError !== undefined && `rounding takes ${(roundingError * 100).toFixed(3)}%`,
    quality && `perplexity ${quality.perplexity} (reference ${quality.referencePerplexity}, ${quality.text})`,
  ].filter((fact) => typeof fact === 'string')
  const line = [
    `  ${precision.padEnd(5)} ${formatBytes(weightBytes).padStart(8)} of weights, ${origin}`,
    ...facts,
  ].join(', ')
  return [line, ...where]
}
