/** What protocol adapters are given: the pipeline, the model directory and the box's state. Wired in main.ts. */
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import type { GenerateInput, Generator } from './request.js'
import type { Streams } from './resume/streams.js'
import type { ModelFacts, RungFacts } from './router/facts.js'

/** Lookup and text services by model name (id, id:rung or tag); unknown names reject with model_not_found. */
export interface ModelDirectory {
  list(): ModelFacts[]
  find(name: string): ModelFacts
  /** Ids of `text`; special tokens in it become ids only when parseSpecial is set. */
  tokenize(name: string, text: string, parseSpecial: boolean): Promise<number[]>
  detokenize(name: string, tokens: readonly number[]): Promise<string>
  vocabSize(name: string): number
  /** Tokens of a prompt as the model would see it. */
  countTokens(name: string, input: GenerateInput, tenant: string): Promise<number>
}

/** State of a rung: as the engine says, `on_demand` = a request loads it, `broken` = it keeps failing and is left alone. */
export type RungState = RungFacts['state'] | 'on_demand' | 'broken'

/** Readiness of the box. */
export interface HealthReport {
  status: 'ok' | 'loading' | 'degraded' | 'draining'
  /** By id of the model and precision of the rung. */
  models: Record<string, Record<string, RungState>>
  /** What somebody should look at. */
  alarms?: string[]
  /** What of models.yaml as it stands is not in use, each with its place: edits that wait for the next start, or were refused. */
  config_remarks?: readonly string[]
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

/** What one caller may use. */
export interface Grant {
  /** Fairness and prefix-cache salt: requests of different tenants share nothing. */
  tenant: string
  /** Name of the caller's key, for the log. */
  key?: string
  /** May use what concerns the whole box: metrics and administration. */
  admin: boolean
  models: ModelDirectory
  generator: Generator
}

/** Decides who may use what. `token` is the caller's bearer token. */
export interface Access {
  /** A key is required. */
  readonly keyed: boolean
  /** Throws unauthorized. */
  admit(token: string | undefined): Grant
  /** As much of the box's state as the caller may see; never refused, probes have no key. */
  health(token: string | undefined): HealthReport
}

/** A rung as the engine holds it. */
export interface VariantResidency {
  /** "model:rung". */
  name: string
  model: string
  state: 'unloaded' | 'loading' | 'ready' | 'failed'
  device: string
  weightBytes: number
  /** Why it failed. */
  error?: string
  /** Device bytes that a load takes. */
  neededBytes: number
  /** Never unloaded to make room. */
  pinned: boolean
  /** Times it was loaded since the engine's start. */
  loads: number
  /** Where the last load took the matrices from, and how long it took; empty and 0 before the first. */
  loadedFrom: string
  loadMs: number
  running: number
  waiting: number
}

/** A device's memory, bytes. */
export interface DeviceState {
  id: string
  kind: string
  budgetBytes: number
  /** Of the budget: the ledger without what is the host's. */
  usedBytes: number
  /** Measured less the ledger; 0 where nothing is measured. */
  driftBytes: number
  /** Every entry; `owner` is a rung, or empty; `host`: memory of the host beside the budget. */
  ledger: { kind: string; owner: string; bytes: number; host: boolean }[]
}

/** What the engine holds. */
export interface Residency {
  variants: VariantResidency[]
  devices: DeviceState[]
}

/**
 * What only operators may do; rungs by "model:rung". Rejects with model_not_found, conflict (pinned, at work),
 * insufficient_memory or engine_unavailable.
 */
export interface Operator {
  residency(): Promise<Residency>
  load(variant: string): Promise<VariantResidency>
  unload(variant: string): Promise<VariantResidency>
  pin(variant: string, pinned: boolean): Promise<VariantResidency>
}

/** Everything an adapter may use. `generator`, `models` and `health` are the box's own: callers get theirs by `access`. */
export interface Services {
  access: Access
  generator: Generator
  models: ModelDirectory
  health(): HealthReport
  limits: Limits
  operator: Operator
  /** What clients may come back to. */
  streams: Streams
  log: Logger
  metrics: Registry
}
