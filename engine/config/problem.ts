/** A place in the file's tree: keys and list indices. */
export type KeyPath = readonly (string | number)[]

/** What is wrong and where, before the place has a line. `key`: the fault is the key itself, not its value. */
export interface Finding {
  path: KeyPath
  message: string
  key?: boolean
}

/** One fault of a models.yaml. Line and column count from 1; 0 = the file as a whole. */
export interface ConfigProblem {
  line: number
  column: number
  /** "models[0].variants[1].path", or empty. */
  path: string
  message: string
}

/** At most so many faults of one file are reported. */
export const MAX_PROBLEMS = 50

/** models.yaml cannot be used. Holds every fault found, up to MAX_PROBLEMS; the message has one line for each: file:line:column: path: reason. */
export class ConfigError extends Error {
  readonly file: string
  readonly problems: readonly ConfigProblem[]

  constructor(file: string, problems: readonly ConfigProblem[]) {
    super(problems.map((problem) => formatProblem(file, problem)).join('\n'))
    this.name = 'ConfigError'
    this.file = file
    this.problems = problems
  }
}

/** "file:line:column: path: message" */
export function formatProblem(file: string, { line, column, path, message }: ConfigProblem): string {
  const place = line > 0 ? `${file}:${line}:${column}` : file
  return path === '' ? `${place}: ${message}` : `${place}: ${path}: ${message}`
}

/** "models[0].id" */
export function formatPath(path: KeyPath): string {
  let text = ''
  for (const part of path) {
    if (typeof part === 'number') text += `[${part}]`
    else text += text === '' ? part : `.${part}`
  }
  return text
}
