import { KV_UNIT_BYTES, type KvCopy, type SlotState, type StepBatch, type StepResult } from '../../engine/native.js'
import type { StepExecutor } from '../../engine/step/executor.js'

/** What a block of a fake device holds: the tokens whose KV it is. */
export interface FakeBlock {
  owner: FakeExecutor
  entry: number
  tokens: Int32Array
}

/** KV memory of a fake device: what every arena unit is part of. */
export type FakeMemory = Map<number, FakeBlock>

/** Copies blocks between a fake device and a fake host memory, at the call, as the device does in the order of its steps. */
export function copyFakeBlocks(memory: FakeMemory, host: Map<number, FakeBlock>, copy: KvCopy): void {
  for (const [i, entry] of copy.deviceBlocks.entries()) {
    const place = copy.hostBlocks[i] ?? -1
    if (copy.toHost) {
      const block = memory.get(entry)
      if (!block || block.entry !== entry) throw new Error(`nothing whole at ${entry}`)
      host.set(place, { ...block, tokens: block.tokens.slice() })
      continue
    }
    const kept = host.get(place)
    if (!kept) throw new Error(`nothing kept at ${place}`)
    const block = { ...kept, entry, tokens: kept.tokens.slice() }
    for (let unit = 0; unit < copy.blockBytes / KV_UNIT_BYTES; unit++) memory.set(entry + unit, block)
  }
}

/** What a fake model answers after a context: any function of the tokens alone. */
function fakeNextToken(context: ArrayLike<number>, seed: number, vocabSize: number): number {
  let hash = 2166136261 ^ seed
  for (let i = 0; i < context.length; i++) hash = Math.imul(hash ^ (context[i] ?? 0), 16777619)
  return (hash >>> 0) % vocabSize
}

/** A whole answer of the fake model. */
export function fakeAnswer(prompt: readonly number[], count: number, seed: number, vocabSize: number): number[] {
  const context = [...prompt]
  for (let i = 0; i < count; i++) context.push(fakeNextToken(context, seed, vocabSize))
  return context.slice(prompt.length)
}

/** Whether a mask of a step lets a token through. */
function isAllowed(masks: Uint32Array, words: number, mask: number, token: number): boolean {
  return mask < 0 || (((masks[mask * words + (token >> 5)] ?? 0) >>> (token & 31)) & 1) === 1
}

interface FakeSlot {
  tokens: number[]
  seed: number
}

function at(array: Int32Array | Uint32Array, index: number): number {
  const value = array[index]
  if (value === undefined) throw new Error(`index ${index} of ${array.length}`)
  return value
}

/**
 * A model that samples from what it finds in the blocks, so that a wrong block table, a lost write or a shared
 * block shows as wrong text; it also throws where slots and blocks disagree. Results come in the order of the calls.
 */
export class FakeExecutor implements StepExecutor {
  steps = 0
  /** Set to make the next step fail with this error. */
  failWith: Error | undefined
  private readonly slots = new Map<number, FakeSlot>()
  /** Goes on with the step that waits for its masks. */
  private masked: ((masks: Uint32Array) => void) | undefined

  constructor(
    private readonly memory: FakeMemory,
    private readonly blockSize: number,
    private readonly vocabSize: number,
    private readonly unitsPerBlock = 1,
  ) {}

  setSlot(slot: number, state: SlotState): void {
    this.slots.set(slot, { tokens: [...state.tokens], seed: state.seed })
  }

  step(given: StepBatch): Promise<StepResult> {
    this.steps++
    if (this.masked) throw new Error('a step before the masks of the one before')
    const failure = this.failWith
    this.failWith = undefined
    // Computed at the call, as steps run in order; delivered later, as a device would.
    const batch = structuredClone(given)
    return new Promise((resolve, reject) => {
      const settle = (masks: Uint32Array): void => {
        const result = failure ?? this.run(batch, masks)
        setImmediate(() => (result instanceof Error ? reject(result) : resolve(result)))
      }
      if (given.rowMasks.every((mask) => mask < 0)) settle(new Uint32Array())
      else this.masked = settle
    })
  }

  giveMasks(masks: Uint32Array): void {
    const settle = this.masked
    if (!settle) throw new Error('no step waits for masks')
    this.masked = undefined
    settle(masks)
  }

  run(batch: StepBatch, masks: Uint32Array = new Uint32Array()): StepResult {
    for (let s = 0; s < batch.slots.length; s++) this.write(batch, s)
    const rows = batch.rowTokens.length
    const maxTop = Math.max(0, ...batch.rowTop)
    const logprobs = batch.rowTop.some((top) => top >= 0)
    const result: StepResult = {
      tokens: new Int32Array(rows),
      logprobs: new Float32Array(logprobs ? rows : 0),
      ranks: new Int32Array(logprobs ? rows : 0),
      topTokens: new Int32Array(rows * maxTop).fill(-1),
      topLogprobs: new Float32Array(rows * maxTop),
      deviceMicros: 1,
    }
    for (let row = 0; row < rows; row++) {
      const target = at(batch.rowTargets, row)
      const token = target >= 0 ? target : this.sample(batch, row, masks)
      result.tokens[row] = token
      if (logprobs) {
        result.logprobs[row] = -token / 1000
        result.ranks[row] = 1
      }
      for (let i = 0; i < at(batch.rowTop, row); i++) {
        result.topTokens[row * maxTop + i] = (token + i) % this.vocabSize
        result.topLogprobs[row * maxTop + i] = -i
      }
    }
    return result
  }

  private write(batch: StepBatch, s: number): void {
    const slot = this.slots.get(at(batch.slots, s))
    if (!slot) throw new Error(`slot ${batch.slots[s]} was never set`)
    const start = at(batch.seqStarts, s)
    const first = at(batch.firstPositions, s)
    if (at(batch.seqStarts, s + 1) <= start) throw new Error(`sequence ${s} has no token in this step`)
    for (let t = start; t < at(batch.seqStarts, s + 1); t++) {
      const given = at(batch.tokens, t)
      const token = given === -1 ? slot.tokens.at(-1) : given
      const position = first + t - start
      if (token !== slot.tokens[position])
        throw new Error(`token ${token} at ${position}, slot has ${slot.tokens[position]}`)
      this.block(batch, s, position)[position % this.blockSize] = token ?? -1
    }
  }

  private block(batch: StepBatch, s: number, position: number): Int32Array {
    const index = at(batch.blockStarts, s) + Math.floor(position / this.blockSize)
    if (index >= at(batch.blockStarts, s + 1)) throw new Error(`position ${position} has no block`)
    const entry = at(batch.blocks, index)
    const units = Array.from({ length: this.unitsPerBlock }, (_, i) => entry + i)
    const known = this.memory.get(entry)
    const mine = known?.owner === this && known.entry === entry
    if (mine && units.every((unit) => this.memory.get(unit) === known)) return known.tokens
    // Another model wrote here since.
    const block = { owner: this, entry, tokens: new Int32Array(this.blockSize).fill(-1) }
    for (const unit of units) this.memory.set(unit, block)
    return block.tokens
  }

  private sample(batch: StepBatch, row: number, masks: Uint32Array): number {
    const s = at(batch.rowSeqs, row)
    const slot = this.slots.get(at(batch.slots, s))
    if (!slot) throw new Error('unset slot')
    const last = at(batch.firstPositions, s) + at(batch.rowTokens, row) - at(batch.seqStarts, s)
    const context = new Int32Array(last + 1)
    for (let p = 0; p <= last; p++) context[p] = this.block(batch, s, p)[p % this.blockSize] ?? -1
    if (context.length !== slot.tokens.length || context.some((token, i) => token !== slot.tokens[i])) {
      throw new Error(`blocks of slot ${batch.slots[s]} do not hold its tokens`)
    }
    const words = Math.ceil(this.vocabSize / 32)
    let token = fakeNextToken(context, slot.seed, this.vocabSize)
    for (let tries = 0; tries < this.vocabSize && !isAllowed(masks, words, at(batch.rowMasks, row), token); tries++) {
      token = (token + 1) % this.vocabSize
    }
    slot.tokens.push(token)
    return token
  }
}
