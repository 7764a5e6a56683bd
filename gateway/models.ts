import { isDeepStrictEqual } from 'node:util'
import { status as grpcStatus } from '@grpc/grpc-js'
import type { EngineClient } from '../proto/gen/edgeshift/v1/engine.js'
import type { Config, ModelConfig } from '../engine/config/index.js'
import { fetchAssets } from './engine-client/connect.js'
import { GatewayError } from './errors.js'
import { type EngineSnapshot, toModelFacts } from './model-facts.js'
import type { GenerateInput } from './request.js'
import { decideRoute } from './router/decide.js'
import type { Lost, ModelFacts, Route, RouteRequest, RouteResult } from './router/facts.js'
import type { RungMeter } from './router/meter.js'
import { nextRoute } from './router/next-route.js'
import { findTarget } from './router/target.js'
import type { RungWatch } from './router/watch.js'
import type { ModelDirectory } from './services.js'
import type { ModelAsset, TextModel } from './text/types.js'

/** Makes a model's text side from its files; rejects when they are missing or broken. */
export type TextLoader = (assets: ModelAsset[], maxTokens: number) => Promise<TextModel>

const ASSETS_TIMEOUT_MS = 30_000
/** How old facts may be: breakers and ladders also change by the passing of time. */
const FACTS_MS = 200

/** What is known of the rungs beside what the engine says. */
export interface RungKnowledge {
  watch: RungWatch
  meter: RungMeter
  /** Milliseconds, monotonic; the watch's clock. */
  now: () => number
}

/** The models of a configuration. */
export type ConfiguredModels = Pick<Config, 'models' | 'digest'>

/** The configured models with what the engine says of their rungs. Owns their text sides: close it. */
export class Models implements ModelDirectory {
  #config: ConfiguredModels
  readonly #loadText: TextLoader
  readonly #engine: () => EngineSnapshot
  readonly #knowledge: RungKnowledge
  readonly #created = Math.floor(Date.now() / 1000)
  readonly #texts = new Map<string, TextModel>()
  readonly #textErrors = new Map<string, string>()
  /** Ends with the last call of loadTexts: of two at a time each would make what the other makes. */
  #turn: Promise<void> = Promise.resolve()
  /** The facts for the snapshot they were made from: requests look them up far more often than they change. */
  #cache: { snapshot: EngineSnapshot; version: number; madeAt: number; facts: ModelFacts[] } | undefined

  constructor(config: ConfiguredModels, loadText: TextLoader, engine: () => EngineSnapshot, knowledge: RungKnowledge) {
    this.#config = config
    this.#loadText = loadText
    this.#engine = engine
    this.#knowledge = knowledge
  }

  list(): ModelFacts[] {
    const snapshot = this.#engine()
    const { watch, now } = this.#knowledge
    const cached = this.#cache
    const current =
      cached?.snapshot.offers === snapshot.offers &&
      cached?.snapshot.state === snapshot.state &&
      cached?.version === watch.version &&
      now() - cached.madeAt < FACTS_MS
    if (cached && current) return cached.facts
    const madeAt = now()
    const facts = this.#config.models.map((config) => this.#mark(toModelFacts(config, snapshot, this.#created), madeAt))
    this.#cache = { snapshot, version: watch.version, madeAt, facts }
    return facts
  }

  find(name: string): ModelFacts {
    const target = findTarget(name, this.list())
    if (target) return target.model
    throw new GatewayError('model_not_found', `the model '${name}' does not exist`, { param: 'model' })
  }

  /** Where a request is served now. A route that is a probe is taken to be sent. */
  route(request: RouteRequest): RouteResult {
    return this.#probed(decideRoute(request, this.list()))
  }

  /** Where a request that was lost goes on. */
  nextRoute(lost: Lost): RouteResult {
    return this.#probed(nextRoute(this.find(lost.route.model), lost))
  }

  /** A route was given, but no request was sent there: where it was a probe, the next request may be it. */
  unsent(route: Route): void {
    if (route.probe) this.#knowledge.watch.abandoned(route)
  }

  /** Longest prompt plus answer on a rung, tokens. */
  contextLimit(variant: string): number {
    return findTarget(variant, this.list())?.rung?.maxModelLen ?? 0
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

  async countTokens(name: string, input: GenerateInput, tenant: string): Promise<number> {
    if (input.kind === 'tokens') return input.tokens.length
    const text = this.#readyText(name)
    const tokens = await (input.kind === 'chat'
      ? text.encodeChat(input.messages, tenant)
      : text.encodePrompt(input.text, tenant))
    return tokens.length
  }

  /**
   * Gets the text sides that are missing from a connected engine, one call after the other; those stay missing that are of
   * another edit than the one in use, here or there. Rejects when the connection fails.
   */
  loadTexts(client: EngineClient): Promise<void> {
    const turn = this.#turn.then(() => this.#loadMissing(client))
    this.#turn = turn.catch(() => undefined)
    return turn
  }

  async #loadMissing(client: EngineClient): Promise<void> {
    const missing = this.#config.models.filter(({ id }) => !this.#texts.has(id))
    await Promise.all(missing.map((config) => this.#loadOne(client, config)))
  }

  /** Takes an edited configuration. Models whose files changed get their text sides anew, by `loadTexts`. */
  async update(next: ConfiguredModels): Promise<void> {
    const before = new Map(this.#config.models.map((config) => [config.id, filesOf(config)]))
    const same = new Set(
      next.models.filter((config) => isDeepStrictEqual(before.get(config.id), filesOf(config))).map(({ id }) => id),
    )
    this.#config = next
    this.#cache = undefined
    const gone = [...this.#texts].filter(([id]) => !same.has(id))
    for (const [id] of gone) this.#texts.delete(id)
    this.#textErrors.clear()
    await Promise.all(gone.map(([, text]) => text.close()))
  }

  async close(): Promise<void> {
    await Promise.all([...this.#texts.values()].map((text) => text.close()))
    this.#texts.clear()
  }

  async #loadOne(client: EngineClient, { id, max_model_len: maxLength }: ModelConfig): Promise<void> {
    const config = this.#config
    // What came of an edit that was replaced meanwhile is nobody's.
    const isCurrent = (): boolean => this.#config === config
    try {
      const assets = await fetchAssets(client, id, config.digest, ASSETS_TIMEOUT_MS)
      const files = [...assets].map(([name, data]) => ({ name, data }))
      const text = await this.#loadText(files, maxLength ?? 0)
      if (!isCurrent()) return await text.close()
      this.#texts.set(id, text)
      this.#textErrors.delete(id)
    } catch (error) {
      const code = codeOf(error)
      if (code === grpcStatus.ABORTED) return
      if (code !== undefined && !MODEL_FAULTS.has(code)) throw error
      if (isCurrent()) this.#textErrors.set(id, error instanceof Error ? error.message : String(error))
    }
  }

  #mark(facts: ModelFacts, now: number): ModelFacts {
    const { watch, meter } = this.#knowledge
    for (const rung of facts.variants) {
      meter.follow(rung, now)
      for (const place of [rung, ...rung.elsewhere]) Object.assign(place, meter.measured(place))
    }
    return watch.mark(facts)
  }

  #probed(result: RouteResult): RouteResult {
    if (result.kind === 'serve' && result.route.probe) this.#knowledge.watch.probing(result.route)
    return result
  }

  #readyText(name: string): TextModel {
    const text = this.textOf(name)
    if (text) return text
    throw new GatewayError('loading', 'the model is being loaded', { retryAfterMs: 1000 })
  }
}

/** What a model's text side is made from. */
function filesOf({ variants, max_model_len }: ModelConfig): object {
  return { variants, max_model_len }
}

/** What is the fault of a model's files, not of the connection. */
const MODEL_FAULTS: ReadonlySet<number> = new Set([grpcStatus.NOT_FOUND, grpcStatus.FAILED_PRECONDITION])

/** The gRPC status of a call that failed. */
function codeOf(error: unknown): number | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'number' ? error.code : undefined
}
