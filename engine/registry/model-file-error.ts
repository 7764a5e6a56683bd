/** A model file that cannot be served; the message names the file, the place in it and the reason. */
export class ModelFileError extends Error {
  /** invalid_file: contradicts itself or the format; unsupported: well-formed, but of a kind that is not served. */
  readonly code: 'invalid_file' | 'unsupported'

  constructor(code: 'invalid_file' | 'unsupported', message: string) {
    super(message)
    this.name = 'ModelFileError'
    this.code = code
  }
}

/** A file that contradicts itself or its format. */
export function invalidFile(file: string, reason: string): ModelFileError {
  return new ModelFileError('invalid_file', `${file}: ${reason}`)
}

/** A well-formed file of a kind that is not served. */
export function unsupported(file: string, reason: string): ModelFileError {
  return new ModelFileError('unsupported', `${file}: ${reason}`)
}

/** A value of a file in a message: JSON, cut short. */
export function quote(value: unknown): string {
  const text = typeof value === 'string' ? JSON.stringify(value.slice(0, 100)) : typeof value
  return value === null || typeof value === 'number' || typeof value === 'boolean' ? String(value) : text
}
