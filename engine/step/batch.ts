import type { SlotState, StepBatch } from '../native.js'
import type { PlanEntry, StepPlan } from '../scheduler/plan.js'
import type { Sequence } from '../scheduler/sequence.js'

/** Reports no log probabilities for a row. */
const NO_LOGPROBS = -1
const SAMPLE = -1
const LAST_SAMPLED = -1

/** A growable typed array that is refilled every step. */
class Column<T extends Int32Array | Uint32Array> {
  length = 0
  private data: T

  constructor(private readonly make: (length: number) => T) {
    this.data = make(256)
  }

  push(value: number): void {
    if (this.length === this.data.length) this.grow(this.length + 1)
    this.data[this.length++] = value
  }

  append(values: T): void {
    if (this.length + values.length > this.data.length) this.grow(this.length + values.length)
    this.data.set(values, this.length)
    this.length += values.length
  }

  view(): T {
    return this.data.subarray(0, this.length) as T
  }

  private grow(length: number): void {
    const data = this.make(Math.max(length, this.data.length * 2))
    data.set(this.data)
    this.data = data
  }
}

const int32 = (): Column<Int32Array> => new Column((length) => new Int32Array(length))

/** Turns plans into the arrays of a native step, reusing its buffers: a batch is valid until the next `build`. */
export class BatchBuilder {
  private readonly tokens = int32()
  private readonly seqStarts = int32()
  private readonly firstPositions = int32()
  private readonly slots = int32()
  private readonly blockStarts = int32()
  private readonly blocks = new Column((length) => new Uint32Array(length))
  private readonly rowTokens = int32()
  private readonly rowSeqs = int32()
  private readonly rowTargets = int32()
  private readonly rowTop = int32()

  constructor(private readonly blockSize: number) {}

  build(plan: StepPlan): StepBatch {
    this.reset()
    for (const [index, entry] of plan.entries.entries()) this.add(entry, index)
    return {
      tokens: this.tokens.view(),
      seqStarts: this.seqStarts.view(),
      firstPositions: this.firstPositions.view(),
      slots: this.slots.view(),
      blockStarts: this.blockStarts.view(),
      blocks: this.blocks.view(),
      rowTokens: this.rowTokens.view(),
      rowSeqs: this.rowSeqs.view(),
      rowTargets: this.rowTargets.view(),
      rowTop: this.rowTop.view(),
    }
  }

  private reset(): void {
    for (const column of [this.tokens, this.firstPositions, this.slots, this.rowTokens]) column.length = 0
    for (const column of [this.rowSeqs, this.rowTargets, this.rowTop]) column.length = 0
    this.blocks.length = 0
    for (const column of [this.seqStarts, this.blockStarts]) {
      column.length = 0
      column.push(0)
    }
  }

  private add(entry: PlanEntry, index: number): void {
    const { sequence, first, count } = entry
    const start = this.tokens.length
    const known = Math.min(count, sequence.length - first)
    if (known > 0) this.tokens.append(sequence.tokens.subarray(first, first + known))
    if (known < count) this.tokens.push(LAST_SAMPLED)
    this.seqStarts.push(this.tokens.length)
    this.firstPositions.push(first)
    this.slots.push(sequence.slot)
    this.blocks.append(sequence.table.subarray(0, Math.ceil((first + count) / this.blockSize)))
    this.blockStarts.push(this.blocks.length)
    this.addRows(entry, index, start)
  }

  private addRows(entry: PlanEntry, index: number, start: number): void {
    const { sequence } = entry
    const top = sequence.submit.sampling?.topLogprobs
    for (let position = entry.scoreFrom; position < entry.scoreTo; position++) {
      this.addRow(start + position - entry.first, index, sequence.tokens[position + 1] ?? 0, top ?? 0)
    }
    if (entry.sample) this.addRow(start + entry.count - 1, index, SAMPLE, top ?? NO_LOGPROBS)
  }

  private addRow(token: number, sequence: number, target: number, top: number): void {
    this.rowTokens.push(token)
    this.rowSeqs.push(sequence)
    this.rowTargets.push(target)
    this.rowTop.push(top)
  }
}

/** The native sampling state of a sequence as it stands. */
export function slotState(sequence: Sequence): SlotState {
  const { submit } = sequence
  const sampling = submit.sampling
  return {
    temperature: sampling?.temperature ?? 0,
    topK: sampling?.topK ?? 0,
    topP: sampling?.topP ?? 1,
    minP: sampling?.minP ?? 0,
    repetitionPenalty: sampling?.repetitionPenalty ?? 1,
    presencePenalty: sampling?.presencePenalty ?? 0,
    frequencyPenalty: sampling?.frequencyPenalty ?? 0,
    seed: sampling?.seed ?? 0,
    biasTokens: Int32Array.from(sampling?.logitBias.keys() ?? []),
    biasValues: Float32Array.from(sampling?.logitBias.values() ?? []),
    stopTokens: Int32Array.from(sequence.stopTokens),
    minTokens: sampling?.minTokens ?? 0,
    tokens: sequence.tokens.slice(0, sequence.length),
    promptLength: submit.prompt.length - submit.replayedTokens,
  }
}
