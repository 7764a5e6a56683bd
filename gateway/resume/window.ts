/** The events of a stream that may be asked for again: a window in bytes that ends at the newest event. */
import type { GenerateEvent } from '../request.js'

/** An event with its number; numbers count from 1. */
export interface Numbered {
  number: number
  event: GenerateEvent
}

interface Kept extends Numbered {
  bytes: number
}

const COMPACT_AT = 1024

/** Events in order. `started` and `degraded` are always kept: what comes after them is to be read with them. */
export class EventWindow {
  /** Dropped text of choices with log probabilities, characters by choice: offsets of what follows count from there. */
  readonly droppedCharacters: number[] = []
  /** Estimate of what is held. */
  bytes = 0
  /** Kept though the events around them were dropped. */
  readonly #landmarks: Kept[] = []
  #kept: Kept[] = []
  /** Index of the oldest in `#kept` that is not dropped. */
  #from = 0
  #last = 0
  #dropped = 0

  /** Number of the newest event; 0 = none yet. */
  get last(): number {
    return this.#last
  }

  /** Number of the newest event that was dropped; 0 = none. */
  get dropped(): number {
    return this.#dropped
  }

  push(event: GenerateEvent): void {
    const bytes = sizeOf(event)
    this.bytes += bytes
    this.#kept.push({ number: ++this.#last, event, bytes })
  }

  /** What there is after event number `after`, the oldest first, at most `count`. */
  after(after: number, count: number): Numbered[] {
    const landmarks = this.#landmarks.filter(({ number }) => number > after)
    const first = this.#kept[this.#from]?.number ?? this.#last + 1
    const start = this.#from + Math.max(0, after + 1 - first)
    return [...landmarks, ...this.#kept.slice(start, start + count)].slice(0, count)
  }

  /** Bytes of the events after number `after`. */
  bytesAfter(after: number): number {
    let bytes = 0
    for (let i = this.#kept.length - 1; i >= this.#from; i--) {
      const kept = this.#kept[i]
      if (!kept || kept.number <= after) break
      bytes += kept.bytes
    }
    return bytes
  }

  /** Drops the oldest events up to number `upTo` until at most `maxBytes` are held. */
  trim(maxBytes: number, upTo: number): void {
    while (this.bytes > maxBytes) {
      const oldest = this.#kept[this.#from]
      if (!oldest || oldest.number > upTo) break
      this.#from++
      if (oldest.event.type === 'started' || oldest.event.type === 'degraded') this.#landmarks.push(oldest)
      else this.#drop(oldest)
    }
    if (this.#from < COMPACT_AT) return
    this.#kept = this.#kept.slice(this.#from)
    this.#from = 0
  }

  #drop({ number, event, bytes }: Kept): void {
    this.bytes -= bytes
    this.#dropped = number
    if (event.type !== 'text' || !event.logprobs) return
    const { index } = event
    const count = event.logprobs.reduce((sum, { token }) => sum + Array.from(token).length, 0)
    this.droppedCharacters[index] = (this.droppedCharacters[index] ?? 0) + count
  }
}

const EVENT_BYTES = 160
const LOGPROB_BYTES = 160
const ALTERNATIVE_BYTES = 120

/** About what an event takes in memory. */
function sizeOf(event: GenerateEvent): number {
  if (event.type !== 'text') return EVENT_BYTES
  const logprobs = event.logprobs ?? []
  const alternatives = logprobs.reduce((sum, { top }) => sum + top.length, 0)
  const text = event.text.length * 2 + event.tokens.length * 8
  return EVENT_BYTES + text + logprobs.length * LOGPROB_BYTES + alternatives * ALTERNATIVE_BYTES
}
