/** What protocol adapters are given: the pipeline, the model directory and the box's state. Wired in main.ts. */
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import type { Generator } from './request.js'

/** One rung of a model, as clients list it. */
export interface VariantEntry {
  /** "model:rung". */
  name: string
  precision: 'fp16' | 'int8' | 'int4'
  state: 'unloaded' | 'loading' | 'ready' | 'failed'
  weightBytes: number
  device: string
  /** Why it failed. */
  error?: string
}

/** One model of models.yaml. */
export interface ModelEntry {
  id: string
  tags: string[]
  maxModelLen: number
  variants: VariantEntry[]
  /** Unix seconds at which the gateway first saw it. */
  created: number
}

/** Lookup and text services by model name (id, id:rung or tag); unknown names reject with model_not_found. */
export interface ModelDirectory {
  list(): ModelEntry[]
  find(name: string): ModelEntry
  /** Ids of `text`; special tokens in it become ids only when parseSpecial is set. */
  tokenize(name: string, text: string, parseSpecial: boolean): Promise<number[]>
  detokenize(name: string, tokens: readonly number[]): Promise<string>
  vocabSize(name: string): number
}

/** Readiness of the box. */
export interface HealthReport {
  status: 'ok' | 'loading' | 'degraded' | 'draining'
  models: Record<string, Record<string, string>>
}

/** Bounds applied to every request before work is done for it. */
export interface Limits {
  maxBodyBytes: number
  maxPromptTokens: number
  /** Prompts of one completions request (`prompt` as an array). */
  maxPrompts: number
  maxStopStrings: number
  maxStopLength: number
  maxChoices: number
  maxTopLogprobs: number
}

/** Everything an adapter may use. */
export interface Services {
  generator: Generator
  models: ModelDirectory
  health(): HealthReport
  limits: Limits
  log: Logger
  metrics: Registry
}
