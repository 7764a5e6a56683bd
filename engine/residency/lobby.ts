import type { FinishReason, SequenceError } from '../../proto/gen/edgeshift/v1/engine.js'
import { endOf, type Sequence } from '../scheduler/sequence.js'

/** Sequences of variants that are not resident, in the order of their arrival; they wait for a load. */
export class Lobby {
  /** Keys in the order in which somebody first asked. */
  private readonly lines = new Map<string, Sequence[]>()
  private count = 0

  constructor(private readonly onFinish: (sequence: Sequence, now: number) => void) {}

  get size(): number {
    return this.count
  }

  /** Sequences that wait for a variant. */
  sizeOf(variant: string): number {
    return this.lines.get(variant)?.length ?? 0
  }

  /** Variants that are waited for: the most urgent priority first, then who asked first. */
  wanted(): string[] {
    const lines = [...this.lines].map(([variant, line]) => ({ variant, priority: urgency(line) }))
    return lines.toSorted((a, b) => a.priority - b.priority).map(({ variant }) => variant)
  }

  add(sequence: Sequence): void {
    const { variant } = sequence.submit
    const line = this.lines.get(variant) ?? []
    if (line.length === 0) this.lines.set(variant, line)
    // Nearly always the last; those that ran already come back to where they were.
    const after = line.findLastIndex(({ arrival }) => arrival < sequence.arrival)
    line.splice(after + 1, 0, sequence)
    this.count++
    sequence.holder = this
  }

  /** Ends a sequence that waits here; no effect on a finished one. */
  end(sequence: Sequence, reason: FinishReason, now: number, error?: SequenceError): void {
    if (sequence.state === 'finished' || !this.remove(sequence)) return
    sequence.state = 'finished'
    sequence.dropSwapped()
    this.onFinish(sequence, now)
    sequence.owner.deliver(endOf(sequence.id, reason, error))
  }

  /** Takes out all that wait for a variant, in order. */
  take(variant: string): Sequence[] {
    const line = this.lines.get(variant) ?? []
    this.lines.delete(variant)
    this.count -= line.length
    return line
  }

  /** Ends what is past its deadline or was held too long. */
  sweep(now: number): void {
    for (const sequence of this) {
      const reason = sequence.overdue(now)
      if (reason !== undefined) this.end(sequence, reason, now)
    }
  }

  /** A copy: ending what it yields is allowed. */
  [Symbol.iterator](): Iterator<Sequence> {
    return [...this.lines.values()].flat()[Symbol.iterator]()
  }

  private remove(sequence: Sequence): boolean {
    const { variant } = sequence.submit
    const line = this.lines.get(variant)
    const at = line?.indexOf(sequence) ?? -1
    if (!line || at < 0) return false
    line.splice(at, 1)
    if (line.length === 0) this.lines.delete(variant)
    this.count--
    return true
  }
}

function urgency(line: readonly Sequence[]): number {
  return line.reduce((least, { submit }) => Math.min(least, submit.priority), Infinity)
}
