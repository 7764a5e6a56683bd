/** Several GenerateRequests as one: an array of prompts is answered as one stream of events with one end. */
import type { GenerateEvent, GenerateHandle, GenerateRequest, GenerateSink, Generator, Usage } from '../request.js'

/**
 * Starts every request; choice i of request r becomes index r * n + i. The events keep the order a single request
 * has: started once, one usage with all counts at the end; the first error ends all.
 */
export function generateAll(
  generator: Generator,
  requests: readonly [GenerateRequest, ...GenerateRequest[]],
  sink: GenerateSink,
): GenerateHandle {
  return requests.length === 1 ? generator.generate(requests[0], sink) : new Merged(sink).start(generator, requests)
}

class Merged implements GenerateHandle {
  readonly #sink: GenerateSink
  readonly #handles: GenerateHandle[] = []
  readonly #usage: Usage = { promptTokens: 0, completionTokens: 0, cachedTokens: 0 }
  #started = false
  #over = false
  #running = 0

  constructor(sink: GenerateSink) {
    this.#sink = sink
  }

  start(generator: Generator, requests: readonly GenerateRequest[]): this {
    this.#running = requests.length
    for (const [position, request] of requests.entries()) {
      const handle = generator.generate(request, (event) => this.#take(event, position * request.n))
      this.#handles.push(handle)
      // An error may come before generate() returns; what was started after it must not go on.
      if (this.#over) break
    }
    if (this.#over) this.cancel()
    return this
  }

  cancel(): void {
    for (const handle of this.#handles) handle.cancel()
  }

  pause(): void {
    for (const handle of this.#handles) handle.pause()
  }

  resume(): void {
    for (const handle of this.#handles) handle.resume()
  }

  #take(event: GenerateEvent, offset: number): void {
    if (this.#over) return
    if (event.type === 'error') return this.#fail(event)
    if (event.type === 'usage') return this.#finish(event.usage)
    if (event.type !== 'started') return this.#sink({ ...event, index: event.index + offset })
    if (this.#started) return
    this.#started = true
    this.#sink(event)
  }

  #fail(event: GenerateEvent): void {
    this.#over = true
    this.cancel()
    this.#sink(event)
  }

  #finish(usage: Usage): void {
    this.#usage.promptTokens += usage.promptTokens
    this.#usage.completionTokens += usage.completionTokens
    this.#usage.cachedTokens += usage.cachedTokens
    if (--this.#running > 0) return
    this.#over = true
    this.#sink({ type: 'usage', usage: this.#usage })
  }
}
