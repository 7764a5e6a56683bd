/** Services without an engine, for adapter tests: a Generator that runs scripts and a directory with two models. */
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { GatewayError } from '../../gateway/errors.js'
import { openAccess } from '../../gateway/keys/access.js'
import type {
  GenerateEvent,
  GenerateHandle,
  GenerateInput,
  GenerateRequest,
  GenerateSink,
  Generator,
  TokenLogprob,
} from '../../gateway/request.js'
import { STREAM_BYTES, Streams } from '../../gateway/resume/streams.js'
import type { ModelFacts } from '../../gateway/router/facts.js'
import type {
  HealthReport,
  Limits,
  ModelDirectory,
  Operator,
  Residency,
  Services,
  VariantResidency,
} from '../../gateway/services.js'
import { modelFacts } from './router-facts.js'

/** One request as the fake generator sees it; the test or its script drives it. */
export class FakeRun {
  /** The adapter asked for a stop. */
  cancelled = false
  paused = false
  /** How often the adapter paused the run. */
  pauses = 0
  /** The sink has had its last event. */
  ended = false
  private readonly changes = new Set<() => void>()

  constructor(
    readonly request: GenerateRequest,
    private readonly sink: GenerateSink,
    private readonly onEnd: () => void,
  ) {}

  /** Gives the adapter one event; ignored after the end. */
  emit(event: GenerateEvent): void {
    if (this.ended) return
    this.ended = event.type === 'usage' || event.type === 'error'
    this.sink(event)
    if (this.ended) this.onEnd()
    this.changed()
  }

  start(): void {
    this.emit({ type: 'started', variant: 'fake:int4', reason: 'only rung' })
  }

  text(text: string, index = 0, tokens: number[] = [text.length], logprobs?: TokenLogprob[]): void {
    this.emit({ type: 'text', index, text, tokens, ...(logprobs && { logprobs }) })
  }

  /** Finishes every choice and reports usage. */
  finish(completionTokens = 1, reason: 'stop' | 'length' = 'stop'): void {
    for (let index = 0; index < this.request.n; index++) this.emit({ type: 'finished', index, reason })
    this.emit({ type: 'usage', usage: { promptTokens: 3, completionTokens, cachedTokens: 0 } })
  }

  fail(error: GatewayError): void {
    this.emit({ type: 'error', error })
  }

  /** Resolves as soon as `condition` holds; it is looked at after every call of the adapter and every event. */
  until(condition: (run: FakeRun) => boolean): Promise<void> {
    if (condition(this)) return Promise.resolve()
    return new Promise((resolve) => {
      const look = (): void => {
        if (!condition(this)) return
        this.changes.delete(look)
        resolve()
      }
      this.changes.add(look)
    })
  }

  /** What the adapter holds. */
  readonly handle: GenerateHandle = {
    cancel: () => {
      if (this.ended) return
      this.cancelled = true
      this.fail(new GatewayError('cancelled', 'cancelled by the client'))
    },
    pause: () => {
      this.paused = true
      this.pauses++
      this.changed()
    },
    resume: () => {
      this.paused = false
      this.changed()
    },
  }

  private changed(): void {
    for (const look of this.changes) look()
  }
}

/** Drives one run; called after generate() has returned. */
export type FakeScript = (run: FakeRun) => void

/** Answers with the pieces, one text event each. */
export const answer =
  (...pieces: string[]): FakeScript =>
  (run) => {
    run.start()
    for (let index = 0; index < run.request.n; index++) for (const piece of pieces) run.text(piece, index)
    run.finish(pieces.length * run.request.n)
  }

/** Does nothing: the test drives the run. */
export const hold: FakeScript = () => undefined

/** A Generator that runs `script` for every request and keeps the runs. */
export class FakeGenerator implements Generator {
  readonly runs: FakeRun[] = []
  /** Runs that have not ended. */
  active = 0
  private readonly waiting: { count: number; resolve: () => void }[] = []

  constructor(public script: FakeScript = answer('Hello', ' world')) {}

  generate(request: GenerateRequest, sink: GenerateSink): GenerateHandle {
    const run = new FakeRun(request, sink, () => this.active--)
    this.runs.push(run)
    this.active++
    queueMicrotask(() => this.script(run))
    for (const { count, resolve } of this.waiting) if (this.runs.length >= count) resolve()
    return run.handle
  }

  /** The run number `index`, as soon as it has been started. */
  async run(index: number): Promise<FakeRun> {
    if (this.runs.length <= index) {
      await new Promise<void>((resolve) => this.waiting.push({ count: index + 1, resolve }))
    }
    const run = this.runs[index]
    if (!run) throw new Error(`no run ${index}`)
    return run
  }
}

const CREATED = 1_700_000_000
const FAKE = modelFacts('fake', ['unloaded', 'ready', 'ready'], {
  tags: ['chat', 'default'],
  maxModelLen: 128,
  created: CREATED,
})
FAKE.variants.splice(1, 1)
const OTHER = modelFacts('other', ['failed', 'failed', 'failed'], { maxModelLen: 64, created: CREATED, variants: [] })
const MODELS: ModelFacts[] = [FAKE, OTHER]

/** Tokens are UTF-16 code units, so texts are easy to read off. */
class FakeDirectory implements ModelDirectory {
  list(): ModelFacts[] {
    return MODELS
  }

  find(name: string): ModelFacts {
    const id = name.split(':')[0]
    const model = MODELS.find((entry) => entry.id === id || entry.tags.includes(name))
    if (!model) throw new GatewayError('model_not_found', `model '${name}' does not exist`, { param: 'model' })
    return model
  }

  tokenize(name: string, text: string): Promise<number[]> {
    return settle(() => (this.find(name), Array.from({ length: text.length }, (_, i) => text.charCodeAt(i))))
  }

  detokenize(name: string, tokens: readonly number[]): Promise<string> {
    return settle(() => (this.find(name), String.fromCharCode(...tokens)))
  }

  countTokens(name: string, input: GenerateInput): Promise<number> {
    return settle(() => {
      this.find(name)
      if (input.kind === 'tokens') return input.tokens.length
      const texts = input.kind === 'text' ? [input.text] : input.messages.map(({ content }) => content)
      return texts.join('').length
    })
  }

  vocabSize(name: string): number {
    this.find(name)
    return 65_536
  }
}

async function settle<T>(work: () => T): Promise<T> {
  return work()
}

/** Holds the rungs of MODELS; fp16 does not fit, and what is pinned is not unloaded. */
class FakeOperator implements Operator {
  readonly #variants = new Map<string, VariantResidency>(
    MODELS.flatMap(({ id, variants }) => variants.map((variant) => [variant.name, residencyOf(id, variant)])),
  )

  residency(): Promise<Residency> {
    const devices = [
      {
        id: 'cpu0',
        kind: 'cpu',
        budgetBytes: 4_000_000_000,
        usedBytes: 1024,
        driftBytes: 0,
        ledger: [{ kind: 'weights', owner: 'fake:int4', bytes: 1024, host: false }],
      },
    ]
    return Promise.resolve({ variants: [...this.#variants.values()], devices })
  }

  load(name: string): Promise<VariantResidency> {
    return settle(() => {
      if (name === 'fake:fp16') throw new GatewayError('insufficient_memory', 'it needs 4 GB of 2 GB')
      return this.#change(name, { state: 'ready' })
    })
  }

  unload(name: string): Promise<VariantResidency> {
    return settle(() => {
      if (this.#change(name, {}).pinned) throw new GatewayError('conflict', `${name} is pinned`)
      return this.#change(name, { state: 'unloaded' })
    })
  }

  pin(name: string, pinned: boolean): Promise<VariantResidency> {
    return settle(() => this.#change(name, { pinned }))
  }

  #change(name: string, change: Partial<VariantResidency>): VariantResidency {
    const variant = this.#variants.get(name)
    if (!variant) throw new GatewayError('model_not_found', name)
    return Object.assign(variant, change)
  }
}

function residencyOf(
  model: string,
  { name, state, weightBytes, device }: ModelFacts['variants'][number],
): VariantResidency {
  const work = { pinned: false, loads: 0, loadedFrom: '', loadMs: 0, running: 0, waiting: 0 }
  return { model, name, state, weightBytes, neededBytes: weightBytes, device, ...work }
}

/** Small enough that every bound is easy to pass over in a test. */
export const TEST_LIMITS: Limits = {
  maxBodyBytes: 64 * 1024,
  maxPromptTokens: 4096,
  maxPrompts: 8,
  maxStopStrings: 4,
  maxStopLength: 64,
  maxChoices: 4,
  maxTopLogprobs: 20,
}

/** Services over a FakeGenerator; `health` may be changed by the test. */
export interface FakeServices extends Services {
  generator: FakeGenerator
  report: HealthReport
}

/** Builds FakeServices; `script` answers every request until the test sets another. */
export function fakeServices(script?: FakeScript): FakeServices {
  const report: HealthReport = { status: 'ok', models: { fake: { fp16: 'unloaded', int4: 'ready' }, other: {} } }
  const granted = {
    generator: new FakeGenerator(script),
    models: new FakeDirectory(),
    health: (): HealthReport => services.report,
  }
  const services: FakeServices = {
    ...granted,
    access: openAccess(granted),
    report,
    limits: TEST_LIMITS,
    operator: new FakeOperator(),
    streams: new Streams({ graceMs: 60_000, ...STREAM_BYTES }),
    log: pino({ level: 'silent' }),
    metrics: new Registry(),
  }
  return services
}
