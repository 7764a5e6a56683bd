/** Regular expressions that a checkpoint brings along, run under a time limit: they may backtrack for ever. */
import { type Context, createContext, Script } from 'node:vm'
import { invalidFile, quote } from './model-file-error.js'

/** All matches of one checkpoint together may take so long, milliseconds. */
const BUDGET_MS = 1000

/** The expressions of one file. */
export class ModulePatterns {
  #left = BUDGET_MS
  #made: Context | undefined

  constructor(private readonly file: string) {}

  /** Made when there is a pattern: a context costs a millisecond. */
  get #context(): Context {
    this.#made ??= createContext({ patterns: [], pattern: '', text: '', index: 0 })
    return this.#made
  }

  /** Tests whether a name begins with a match, like Python's re.match. Throws ModelFileError, also when asked later. */
  prefix(pattern: string): (text: string) => boolean {
    this.#context['pattern'] = pattern
    let index: number
    try {
      index = Number(new Script('patterns.push(new RegExp(pattern, "y")) - 1').runInContext(this.#context))
    } catch {
      throw invalidFile(this.file, `quantization_config: ${quote(pattern)} is not a regular expression`)
    }
    return (text) => this.#test(index, text, pattern)
  }

  #test(index: number, text: string, pattern: string): boolean {
    Object.assign(this.#context, { index, text })
    const started = performance.now()
    try {
      return Boolean(TEST.runInContext(this.#context, { timeout: Math.max(1, Math.ceil(this.#left)) }))
    } catch {
      throw invalidFile(this.file, `quantization_config: matching ${quote(pattern)} takes too long`)
    } finally {
      this.#left -= performance.now() - started
    }
  }
}

const TEST = new Script('patterns[index].lastIndex = 0; patterns[index].test(text)')
