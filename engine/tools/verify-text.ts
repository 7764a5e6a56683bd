import { formatBytes } from './units.js'
import type { FileReport, Verification } from './verify.js'

/** The verification for people. */
export function formatVerification(result: Verification): string {
  const { files, tensors, largest, problems, changes } = result
  const where = largest ? `, the largest magnitude is ${largest.magnitude} in ${largest.tensor}` : ''
  const unknown = files.every(({ known, isNew }) => known.length === 0 && !isNew)
  return [
    ...files.map((report) => `${report.sha256}  ${report.file} (${formatBytes(report.bytes)}, ${standing(report)})`),
    `${tensors} tensors with floats${where}`,
    ...problems.map((problem) => `problem: ${problem}`),
    ...changes.map((change) => `changed: ${change}`),
    ...(unknown ? ['--record writes these hashes down, for the next verify to compare with'] : []),
  ].join('\n')
}

const AS = { hub: 'as downloaded', record: 'as recorded' }

function standing({ known, isNew }: FileReport): string {
  const words = known.map(({ from, matches }) => (matches ? AS[from] : `NOT ${AS[from]}`))
  if (isNew) words.push('NOT in the record')
  return words.length > 0 ? words.join(', ') : 'nothing to compare with'
}
