/** What a key may see and ask for, as the interfaces that adapters use anyway. */
import { GatewayError, toGatewayError } from '../errors.js'
import type {
  GenerateEvent,
  GenerateHandle,
  GenerateInput,
  GenerateRequest,
  GenerateSink,
  Generator,
} from '../request.js'
import type { ModelFacts } from '../router/facts.js'
import type { ModelDirectory } from '../services.js'
import { priorityOf, type Urgency } from '../urgency.js'
import type { Meter } from './meter.js'
import type { Quota } from './quota.js'

/** The directory of the models that a key may use. Others are refused alike, whether they exist or not. */
export class ScopedModels implements ModelDirectory {
  readonly #inner: ModelDirectory
  readonly #allowed: ReadonlySet<string>

  constructor(inner: ModelDirectory, allowed: ReadonlySet<string>) {
    this.#inner = inner
    this.#allowed = allowed
  }

  list(): ModelFacts[] {
    return this.#inner.list().filter(({ id }) => this.#allowed.has(id))
  }

  find(name: string): ModelFacts {
    const model = this.#lookUp(name)
    if (model && this.#allowed.has(model.id)) return model
    const message = `this key may not use a model '${name}'; it may use: ${[...this.#allowed].join(', ')}`
    throw new GatewayError('forbidden', message, { param: 'model' })
  }

  async tokenize(name: string, text: string, parseSpecial: boolean): Promise<number[]> {
    this.find(name)
    return this.#inner.tokenize(name, text, parseSpecial)
  }

  async detokenize(name: string, tokens: readonly number[]): Promise<string> {
    this.find(name)
    return this.#inner.detokenize(name, tokens)
  }

  vocabSize(name: string): number {
    this.find(name)
    return this.#inner.vocabSize(name)
  }

  async countTokens(name: string, input: GenerateInput, tenant: string): Promise<number> {
    this.find(name)
    return this.#inner.countTokens(name, input, tenant)
  }

  #lookUp(name: string): ModelFacts | undefined {
    try {
      return this.#inner.find(name)
    } catch (error) {
      if (toGatewayError(error).code === 'model_not_found') return undefined
      throw error
    }
  }
}

const NOTHING: GenerateHandle = { cancel: () => undefined, pause: () => undefined, resume: () => undefined }

/** How urgent a key's requests may be, and are unless they say so. */
interface Standing {
  /** The most urgent priority; what asks for none gets at most that. */
  ceiling: number
  urgency: Urgency | undefined
  /** Share of a busy box against other keys'. */
  weight: number | undefined
}

/** What a key has used. */
export interface Account {
  meter: Meter
  quota: Quota
}

/** A generator that holds a key to its models, priority, rates and places. */
export class GuardedGenerator implements Generator {
  constructor(
    private readonly inner: Generator,
    private readonly models: ModelDirectory,
    private readonly standing: Standing,
    private readonly account: Account,
  ) {}

  generate(request: GenerateRequest, sink: GenerateSink): GenerateHandle {
    try {
      this.models.find(request.model)
      return this.#start(this.#withStanding(request), sink)
    } catch (error) {
      sink({ type: 'error', error: toGatewayError(error) })
      return NOTHING
    }
  }

  #withStanding(request: GenerateRequest): GenerateRequest {
    const { ceiling, urgency, weight } = this.standing
    const priority = priorityOf(request, urgency)
    // Many clients always send 0, which asks for nothing.
    if (priority < ceiling && request.priority !== undefined && request.priority !== 0) {
      throw new GatewayError('forbidden', `this key's most urgent priority is ${ceiling}`, { param: 'priority' })
    }
    return { ...request, priority: Math.max(priority, ceiling), ...(weight !== undefined && { weight }) }
  }

  #start(request: GenerateRequest, sink: GenerateSink): GenerateHandle {
    const { meter, quota } = this.account
    const ticket = quota.enter()
    const estimate = estimateTokens(request.input)
    try {
      meter.admit(estimate)
    } catch (error) {
      ticket.ended()
      throw error
    }
    const bill = meter.unbounded ? undefined : new Bill(meter, estimate, request.echo)
    return this.inner.generate(request, (event) => {
      if (event.type === 'started') ticket.started()
      else if (event.type === 'usage' || event.type === 'error') ticket.ended()
      bill?.take(event)
      sink(event)
    })
  }
}

/** One request's account: the prompt as estimated, then every token as it comes, then what was really used. */
class Bill {
  #started = false
  #charged: number
  /** Choices that have shown the prompt, which the estimate has charged for. */
  readonly #echoed = new Set<number>()

  constructor(
    private readonly meter: Meter,
    private readonly estimate: number,
    private readonly echo: boolean,
  ) {
    this.#charged = estimate
  }

  take(event: GenerateEvent): void {
    if (event.type === 'started') this.#started = true
    else if (event.type === 'text') this.#takeText(event.index, event.tokens.length)
    else if (event.type === 'usage') {
      this.#charge(event.usage.promptTokens + event.usage.completionTokens - this.#charged)
      // Whoever gave up while waiting has its request counted: asking and leaving must not be free.
    } else if (event.type === 'error' && !this.#started && event.error.code !== 'cancelled') {
      this.meter.refund(this.estimate)
    }
  }

  #takeText(choice: number, tokens: number): void {
    if (this.echo && !this.#echoed.has(choice)) this.#echoed.add(choice)
    else this.#charge(tokens)
  }

  #charge(tokens: number): void {
    this.#charged += tokens
    this.meter.charge(tokens)
  }
}

/** Characters of ordinary text per token. */
const CHARACTERS_PER_TOKEN = 4

/** About as many tokens as a prompt will have; corrected by the usage in the end. */
function estimateTokens(input: GenerateInput): number {
  if (input.kind === 'tokens') return input.tokens.length
  const characters =
    input.kind === 'text' ? input.text.length : input.messages.reduce((sum, { content }) => sum + content.length, 0)
  return Math.ceil(characters / CHARACTERS_PER_TOKEN)
}
