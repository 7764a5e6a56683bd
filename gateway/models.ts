import { status as grpcStatus } from '@grpc/grpc-js'
import type { EngineClient, EngineStatus, VariantStatus } from '../proto/gen/edgeshift/v1/engine.js'
import { VariantState } from '../proto/gen/edgeshift/v1/engine.js'
import type { ModelConfig } from '../engine/config/index.js'
import { fetchAssets } from './engine-client/connect.js'
import type { EngineState } from './engine-client/supervisor.js'
import { GatewayError } from './errors.js'
import { findTarget, type Target } from './router/route.js'
import type { ModelDirectory, ModelEntry, VariantEntry } from './services.js'
import type { ModelAsset, TextModel } from './text/types.js'

/** What is known of the engine at a moment. */
export interface EngineSnapshot {
  state: EngineState
  /** Undefined while no session is open. */
  status: EngineStatus | undefined
}

/** Makes a model's text side from its files; rejects when they are missing or broken. */
export type TextLoader = (assets: ModelAsset[], maxTokens: number) => Promise<TextModel>

const ASSETS_TIMEOUT_MS = 30_000

const STATES: Record<VariantState, VariantEntry['state']> = {
  [VariantState.UNSPECIFIED]: 'unloaded',
  [VariantState.UNRECOGNIZED]: 'unloaded',
  [VariantState.UNLOADED]: 'unloaded',
  [VariantState.LOADING]: 'loading',
  [VariantState.READY]: 'ready',
  [VariantState.FAILED]: 'failed',
}

/** The configured models with what the engine says of their rungs. Owns their text sides: close it. */
export class Models implements ModelDirectory {
  readonly #configs: readonly ModelConfig[]
  readonly #loadText: TextLoader
  readonly #engine: () => EngineSnapshot
  readonly #created = Math.floor(Date.now() / 1000)
  readonly #texts = new Map<string, TextModel>()
  readonly #textErrors = new Map<string, string>()
  /** The entries for the snapshot they were made from: requests look them up far more often than they change. */
  #cache: { snapshot: EngineSnapshot; entries: ModelEntry[]; limits: Map<string, number> } | undefined

  constructor(configs: readonly ModelConfig[], loadText: TextLoader, engine: () => EngineSnapshot) {
    this.#configs = configs
    this.#loadText = loadText
    this.#engine = engine
  }

  list(): ModelEntry[] {
    return this.#current().entries
  }

  find(name: string): ModelEntry {
    return this.target(name).model
  }

  /** The model and, when one is named, the rung; throws model_not_found. */
  target(name: string): Target {
    const target = findTarget(name, this.list())
    if (target) return target
    throw new GatewayError('model_not_found', `the model '${name}' does not exist`, { param: 'model' })
  }

  /** Longest prompt plus answer on a rung, tokens. */
  contextLimit(variant: string): number {
    return this.#current().limits.get(variant) ?? 0
  }

  /** The text side of the named model, or undefined while its files have not come. Throws when they are unusable. */
  textOf(name: string): TextModel | undefined {
    const { id } = this.find(name)
    const error = this.#textErrors.get(id)
    if (error !== undefined) {
      throw new GatewayError('engine_unavailable', `the text files of '${id}' cannot be used: ${error}`)
    }
    return this.#texts.get(id)
  }

  async tokenize(name: string, text: string, parseSpecial: boolean): Promise<number[]> {
    return this.#readyText(name).encode(text, parseSpecial)
  }

  async detokenize(name: string, tokens: readonly number[]): Promise<string> {
    return this.#readyText(name).decode(tokens, false)
  }

  vocabSize(name: string): number {
    return this.#readyText(name).vocabSize
  }

  /** Gets the text sides that are missing from a connected engine. Rejects when the connection fails. */
  async loadTexts(client: EngineClient): Promise<void> {
    const missing = this.#configs.filter(({ id }) => !this.#texts.has(id))
    await Promise.all(missing.map((config) => this.#loadOne(client, config)))
  }

  async close(): Promise<void> {
    await Promise.all([...this.#texts.values()].map((text) => text.close()))
    this.#texts.clear()
  }

  async #loadOne(client: EngineClient, { id, max_model_len: maxLength }: ModelConfig): Promise<void> {
    try {
      const assets = await fetchAssets(client, id, ASSETS_TIMEOUT_MS)
      const files = [...assets].map(([name, data]) => ({ name, data }))
      this.#texts.set(id, await this.#loadText(files, maxLength ?? 0))
      this.#textErrors.delete(id)
    } catch (error) {
      if (isConnectionFailure(error)) throw error
      this.#textErrors.set(id, error instanceof Error ? error.message : String(error))
    }
  }

  #readyText(name: string): TextModel {
    const text = this.textOf(name)
    if (text) return text
    throw new GatewayError('loading', 'the model is being loaded', { retryAfterMs: 1000 })
  }

  #current(): { entries: ModelEntry[]; limits: Map<string, number> } {
    const snapshot = this.#engine()
    const cached = this.#cache
    if (cached && cached.snapshot.status === snapshot.status && cached.snapshot.state === snapshot.state) return cached
    const status = new Map(snapshot.status?.variants.map((variant) => [variant.name, variant]))
    const entries = this.#configs.map((config) => this.#entry(config, status, snapshot.state))
    const limits = new Map([...status].map(([name, { maxModelLen }]) => [name, maxModelLen]))
    const made = { snapshot, entries, limits }
    this.#cache = made
    return made
  }

  #entry(config: ModelConfig, status: Map<string, VariantStatus>, state: EngineState): ModelEntry {
    const rungs = rungsOf(config, status)
    const lengths = rungs.map(({ name }) => status.get(name)?.maxModelLen ?? 0)
    return {
      id: config.id,
      tags: config.tags,
      maxModelLen: Math.max(0, ...lengths) || (config.max_model_len ?? 0),
      variants: rungs.map(({ name, precision }) => toVariant(name, precision, status, state)),
      created: this.#created,
    }
  }
}

const MODEL_FAULTS: ReadonlySet<number> = new Set([grpcStatus.NOT_FOUND, grpcStatus.FAILED_PRECONDITION])

/** A call that failed for another reason than the model's files. */
function isConnectionFailure(error: unknown): boolean {
  if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'number') return false
  return !MODEL_FAULTS.has(error.code)
}

const PRECISIONS: readonly VariantEntry['precision'][] = ['fp16', 'int8', 'int4']

type RungName = Pick<VariantEntry, 'name' | 'precision'>

/** As configured; where a rung's precision is read from its file, as the engine has read them. */
function rungsOf({ id, variants }: ModelConfig, status: Map<string, VariantStatus>): RungName[] {
  const stated = variants.flatMap(({ precision }) => (precision ? [{ name: `${id}:${precision}`, precision }] : []))
  if (stated.length === variants.length) return stated
  const read = [...status.values()].flatMap(({ name, model, precision }) =>
    model === id && isPrecision(precision) ? [{ name, precision }] : [],
  )
  if (read.length > 0) return read
  // Until the engine has read the files, requests wait for a rung of any name.
  const free = PRECISIONS.filter((precision) => !stated.some((rung) => rung.precision === precision))
  return [...stated, ...free.slice(0, 1).map((precision) => ({ name: `${id}:${precision}`, precision }))]
}

function isPrecision(text: string): text is VariantEntry['precision'] {
  return PRECISIONS.some((precision) => precision === text)
}

function toVariant(
  name: string,
  precision: VariantEntry['precision'],
  status: Map<string, VariantStatus>,
  engine: EngineState,
): VariantEntry {
  const known = status.get(name)
  if (known) {
    const { weightBytes, device, error } = known
    return { name, precision, state: STATES[known.state], weightBytes, device, ...(error && { error }) }
  }
  // Without a session every rung is on its way, unless the engine keeps dying.
  const failed = engine === 'crash_loop' || engine === 'up'
  const error = engine === 'up' ? 'the engine does not know it' : 'the engine keeps failing'
  const entry = { name, precision, weightBytes: 0, device: '' }
  return failed ? { ...entry, state: 'failed', error } : { ...entry, state: 'loading' }
}
