import { createHash } from 'node:crypto'
import type { LoadRequest } from '../native.js'

/** What of a file tells that its content is the same. */
interface FileStamp {
  size: bigint
  mtimeNs: bigint
}

/** Names the repacked file of a variant for one layout. */
export interface PackedName {
  /** Start of the names of all that were ever made of the same paths at the same rung. */
  variant: string
  file: string
  /** Everything that the content depends on, in text; the file holds it too. */
  key: string
}

/**
 * The name by content: the model's files by path, size and time of change, how their tensors are read, the rung, and the
 * device's layout. Pure but for `stamp`, which throws where there is no such file.
 */
export function packedName(
  { files, weights, spec, precision }: LoadRequest,
  layout: string,
  stamp: (path: string) => FileStamp,
): PackedName {
  const made = files.map((path) => {
    const { size, mtimeNs } = stamp(path)
    return `${path} ${size} ${mtimeNs}`
  })
  const reading = digest(JSON.stringify([weights, spec.headDim, spec.numHeads, spec.numKvHeads, spec.postNorms]))
  const key = [layout, precision, ...made, reading].join('\n')
  const variant = digest([layout, precision, ...files].join('\n')).slice(0, 16)
  return { variant, file: `${variant}-${digest(key).slice(0, 32)}.packed`, key }
}

function digest(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}
