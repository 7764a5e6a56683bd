import type { GgufFile, GgufValue } from '../native.js'
import { invalidFile, type ModelFileError, unsupported } from './model-file-error.js'

/** Typed, range-checked reading of a GGUF's metadata. Every getter throws ModelFileError naming the key. */
export class Metadata {
  constructor(
    private readonly file: string,
    private readonly values: GgufFile['metadata'],
  ) {}

  has(key: string): boolean {
    return Object.hasOwn(this.values, key)
  }

  /** True for a list of anything. */
  isList(key: string): boolean {
    return typeof this.get(key) === 'object'
  }

  invalid(reason: string): ModelFileError {
    return invalidFile(this.file, reason)
  }

  unsupported(reason: string): ModelFileError {
    return unsupported(this.file, reason)
  }

  /** A whole number in [min, max]; `fallback` where the key is absent, otherwise it is required. */
  integer(key: string, min: number, max: number, fallback?: number): number {
    const value = this.get(key) ?? fallback
    if (typeof value !== 'number' || !Number.isSafeInteger(value))
      throw this.invalid(`${key} is ${show(value)}, not a whole number`)
    if (value < min || value > max) throw this.invalid(`${key} is ${value}, outside ${min} to ${max}`)
    return value
  }

  /** A finite number in [min, max]. */
  number(key: string, min: number, max: number, fallback?: number): number {
    const value = this.get(key) ?? fallback
    if (typeof value !== 'number' || Number.isNaN(value)) throw this.invalid(`${key} is ${show(value)}, not a number`)
    if (value < min || value > max) throw this.invalid(`${key} is ${value}, outside ${min} to ${max}`)
    return value
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.get(key) ?? fallback
    if (typeof value !== 'boolean') throw this.invalid(`${key} is ${show(value)}, not true or false`)
    return value
  }

  /** A text; undefined where the key is absent. */
  text(key: string): string | undefined {
    const value = this.get(key)
    if (value !== undefined && typeof value !== 'string') throw this.invalid(`${key} is ${show(value)}, not a text`)
    return value
  }

  requiredText(key: string): string {
    const value = this.text(key)
    if (value === undefined) throw this.invalid(`${key} is missing`)
    return value
  }

  /** A list of texts; required. */
  texts(key: string): readonly string[] {
    const value = this.get(key)
    if (!Array.isArray(value) || !value.every((item) => typeof item === 'string')) {
      throw this.invalid(`${key} is ${show(value)}, not a list of texts`)
    }
    return value
  }

  /** A list of numbers; undefined where the key is absent. */
  numbers(key: string): ArrayLike<number> | undefined {
    const value = this.get(key)
    if (value === undefined) return undefined
    if (!isNumbers(value)) throw this.invalid(`${key} is ${show(value)}, not a list of numbers`)
    return value
  }

  private get(key: string): GgufValue | undefined {
    return this.has(key) ? this.values[key] : undefined
  }
}

function isNumbers(value: GgufValue): value is ArrayLike<number> {
  if (ArrayBuffer.isView(value)) return !(value instanceof DataView)
  return Array.isArray(value) && value.every((item) => typeof item === 'number')
}

function show(value: GgufValue | undefined): string {
  if (value === undefined) return 'missing'
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 60))
  return typeof value === 'object' ? 'a list' : String(value)
}
