import type { SlotState, StepBatch } from '../native.js'
import type { PlanEntry, StepPlan } from '../scheduler/plan.js'
import type { Sequence } from '../scheduler/sequence.js'

/** Reports no log probabilities for a row. */
const NO_LOGPROBS = -1
const SAMPLE = -1
const NO_MASK = -1
const LAST_SAMPLED = -1

/** A growable array of 32-bit integers that is refilled every step. */
class Column {
  length = 0
  private data = new Int32Array(256)

  push(value: number): void {
    if (this.length === this.data.length) this.grow(this.length + 1)
    this.data[this.length++] = value
  }

  append(values: Int32Array | Uint32Array): void {
    if (this.length + values.length > this.data.length) this.grow(this.length + values.length)
    this.data.set(values, this.length)
    this.length += values.length
  }

  view(): Int32Array {
    return this.data.subarray(0, this.length)
  }

  /** The same bits, unsigned. */
  unsignedView(): Uint32Array {
    return new Uint32Array(this.data.buffer, 0, this.length)
  }

  private grow(length: number): void {
    const data = new Int32Array(Math.max(length, this.data.length * 2))
    data.set(this.data)
    this.data = data
  }
}

/** Turns plans into the arrays of a native step, reusing its buffers: a batch is valid until the next `build`. */
export class BatchBuilder {
  private readonly tokens = new Column()
  private readonly seqStarts = new Column()
  private readonly firstPositions = new Column()
  private readonly slots = new Column()
  private readonly blockStarts = new Column()
  private readonly blocks = new Column()
  private readonly rowTokens = new Column()
  private readonly rowSeqs = new Column()
  private readonly rowTargets = new Column()
  private readonly rowTop = new Column()
  private readonly rowMasks = new Column()

  private masks = 0

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
      blocks: this.blocks.unsignedView(),
      rowTokens: this.rowTokens.view(),
      rowSeqs: this.rowSeqs.view(),
      rowTargets: this.rowTargets.view(),
      rowTop: this.rowTop.view(),
      rowMasks: this.rowMasks.view(),
    }
  }

  private reset(): void {
    for (const column of [this.tokens, this.firstPositions, this.slots, this.rowTokens]) column.length = 0
    for (const column of [this.rowSeqs, this.rowTargets, this.rowTop, this.rowMasks]) column.length = 0
    this.blocks.length = 0
    this.masks = 0
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
      this.addRow(start + position - entry.first, index, sequence.tokens[position + 1] ?? 0, top ?? 0, NO_MASK)
    }
    if (!entry.sample) return
    const mask = isMasked(entry) ? this.masks++ : NO_MASK
    this.addRow(start + entry.count - 1, index, SAMPLE, top ?? NO_LOGPROBS, mask)
  }

  private addRow(token: number, sequence: number, target: number, top: number, mask: number): void {
    this.rowTokens.push(token)
    this.rowSeqs.push(sequence)
    this.rowTargets.push(target)
    this.rowTop.push(top)
    this.rowMasks.push(mask)
  }
}

/** Whether an entry's sampled row obeys a mask; the masks of a step are in the order of these entries. */
export function isMasked({ sample, sequence }: PlanEntry): boolean {
  return sample && sequence.grammar !== undefined
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
    promptLength: sequence.promptLength,
    ropes: [],
  }
}
