/** Texts of models.yaml for tests, and what is wrong with one. */
import { ConfigError, parseConfig } from '../../engine/config/index.js'

/** The faults of a text: "line:column path: message". */
export function faults(text: string): string[] {
  try {
    parseConfig(text, '/box/models.yaml')
    return []
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    return error.problems.map(({ line, column, path, message }) => `${line}:${column} ${path}: ${message}`)
  }
}

/** One model, and nothing else. */
export const MODEL = 'models: [{ id: m, variants: [{ precision: fp16, path: x.gguf }] }]'
/** A file with one model and more lines after it. */
export const having = (...lines: string[]) => [MODEL, ...lines].join('\n')
/** A file whose one model has these lines beside id. */
export const model = (...lines: string[]) => ['models:', '  - id: m', ...lines.map((line) => `    ${line}`)].join('\n')
/** The same with these rungs. */
export const ladder = (...rungs: string[]) => model('variants:', ...rungs.map((rung) => `  - { ${rung} }`))
