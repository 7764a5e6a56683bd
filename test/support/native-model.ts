/** Drives a NativeModel without an engine: block tables, batches and greedy loops for the addon's own tests. */
import { readFileSync } from 'node:fs'
import {
  type DeviceOptions,
  KV_UNIT_BYTES,
  type LoadRequest,
  type NativeModel,
  type Precision,
  type SlotState,
  type StepBatch,
  type StepResult,
} from '../../engine/native.js'
import { loadAddon } from '../../engine/addon.js'
import { readModelCard } from '../../engine/registry/index.js'

export const BLOCK_SIZE = 16
const MAX_CONTEXT = 2304
const SMOLLM2 = new URL('../../models/smollm2-135m-instruct-q4_1.gguf', import.meta.url).pathname

export const cpuDevice: DeviceOptions = { kind: 'cpu', index: 0, threads: 2, kvArenaBytes: 512 << 20 }

/** What a test of a backend runs on: the CPU, and the first GPU where there is one. */
export interface TestDevice {
  name: 'the CPU' | 'a GPU'
  options: DeviceOptions
  /** No such device here: its tests are skipped. */
  missing: boolean
}

/** The devices that tests of a backend run on. */
export function testDevices(): TestDevice[] {
  const missing = !loadAddon()
    .devices()
    .some(({ kind, index }) => kind === 'cuda' && index === 0)
  const gpu: DeviceOptions = { ...cpuDevice, kind: 'cuda', threads: 1 }
  return [
    { name: 'the CPU', options: cpuDevice, missing: false },
    { name: 'a GPU', options: gpu, missing },
  ]
}

/** Load request for the embedded model. */
export function smollm2Request(precision: Precision, maxBatchTokens = 512): LoadRequest {
  const card = readModelCard(SMOLLM2, (path) => loadAddon().readGguf(path))
  const { spec, files } = card
  return { spec, weights: card.weights, files, precision, maxSlots: 8, maxBatchTokens, blockSize: BLOCK_SIZE }
}

/** State of a sequence with neutral sampling parameters: greedy. */
export function greedyState(tokens: readonly number[], overrides: Partial<SlotState> = {}): SlotState {
  return {
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    seed: 0,
    biasTokens: new Int32Array(),
    biasValues: new Float32Array(),
    stopTokens: new Int32Array(),
    minTokens: 0,
    tokens: Int32Array.from(tokens),
    promptLength: tokens.length,
    ropes: [],
    ...overrides,
  }
}

/** A row of a step: `at` counts from the sequence's first token of the step; target -1 samples. */
export interface Row {
  at: number
  target?: number
  top?: number
  mask?: number
}

/** What one sequence does in a step. Its KV lies in the slot's own stretch of the arena. */
export interface SequenceStep {
  slot: number
  first: number
  tokens: readonly number[]
  rows: readonly Row[]
}

/** Block table entries of a slot for `tokens` positions. */
function blockTable(model: NativeModel, slot: number, tokens: number): number[] {
  const perSlot = Math.ceil(MAX_CONTEXT / BLOCK_SIZE)
  const units = model.blockBytes / KV_UNIT_BYTES
  return Array.from({ length: Math.ceil(tokens / BLOCK_SIZE) }, (_, i) => (slot * perSlot + i) * units)
}

function prefixSums(counts: readonly number[]): Int32Array {
  const sums = new Int32Array(counts.length + 1)
  counts.forEach((count, i) => {
    sums[i + 1] = (sums[i] ?? 0) + count
  })
  return sums
}

/** Flattens sequences into a batch. */
export function makeBatch(model: NativeModel, steps: readonly SequenceStep[]): StepBatch {
  const starts = prefixSums(steps.map(({ tokens }) => tokens.length))
  const tables = steps.map(({ slot, first, tokens }) => blockTable(model, slot, first + tokens.length))
  const rows = steps.flatMap((step, seq) =>
    step.rows.map((row) => ({ ...row, seq, token: (starts[seq] ?? 0) + row.at })),
  )
  return {
    tokens: Int32Array.from(steps.flatMap(({ tokens }) => tokens)),
    seqStarts: starts,
    firstPositions: Int32Array.from(steps, ({ first }) => first),
    slots: Int32Array.from(steps, ({ slot }) => slot),
    blockStarts: prefixSums(tables.map((table) => table.length)),
    blocks: Uint32Array.from(tables.flat()),
    rowTokens: Int32Array.from(rows, ({ token }) => token),
    rowSeqs: Int32Array.from(rows, ({ seq }) => seq),
    rowTargets: Int32Array.from(rows, ({ target }) => target ?? -1),
    rowTop: Int32Array.from(rows, ({ top }) => top ?? -1),
    rowMasks: Int32Array.from(rows, ({ mask }) => mask ?? -1),
  }
}

/** Runs `count` greedy tokens after a prompt; the prompt goes in chunks, decode steps are queued without waiting. */
export async function generate(
  model: NativeModel,
  prompt: readonly number[],
  count: number,
  { slot = 0, chunk = 512, state = {} }: { slot?: number; chunk?: number; state?: Partial<SlotState> } = {},
): Promise<number[]> {
  model.setSlot(slot, greedyState(prompt, state))
  const pending: Promise<StepResult>[] = []
  for (let first = 0; first < prompt.length; first += chunk) {
    const tokens = prompt.slice(first, first + chunk)
    const last = first + chunk >= prompt.length
    const rows = last ? [{ at: tokens.length - 1 }] : []
    pending.push(model.step(makeBatch(model, [{ slot, first, tokens, rows }])))
  }
  for (let i = 1; i < count; i++) {
    pending.push(
      model.step(makeBatch(model, [{ slot, first: prompt.length + i - 1, tokens: [-1], rows: [{ at: 0 }] }])),
    )
  }
  return (await Promise.all(pending)).flatMap(({ tokens }) => Array.from(tokens))
}

/** Greedy tokens of several prompts that run in the same steps; slots 0, 1, ... */
export async function generateTogether(
  model: NativeModel,
  prompts: readonly (readonly number[])[],
  count: number,
): Promise<number[][]> {
  prompts.forEach((prompt, slot) => model.setSlot(slot, greedyState(prompt)))
  const prefill = prompts.map((tokens, slot) => ({ slot, first: 0, tokens, rows: [{ at: tokens.length - 1 }] }))
  const pending = [model.step(makeBatch(model, prefill))]
  for (let i = 1; i < count; i++) {
    const decode = prompts.map((prompt, slot) => ({
      slot,
      first: prompt.length + i - 1,
      tokens: [-1],
      rows: [{ at: 0 }],
    }))
    pending.push(model.step(makeBatch(model, decode)))
  }
  const steps = await Promise.all(pending)
  return prompts.map((_, slot) => steps.map(({ tokens }) => tokens[slot] ?? -1))
}

/** Log probabilities of `targets` after a prompt. */
export async function scoreNext(
  model: NativeModel,
  prompt: readonly number[],
  targets: readonly number[],
  ropes: SlotState['ropes'] = [],
): Promise<Float32Array> {
  model.setSlot(0, greedyState(prompt, { ropes }))
  const rows = targets.map((target) => ({ at: prompt.length - 1, target, top: 0 }))
  const { logprobs } = await model.step(makeBatch(model, [{ slot: 0, first: 0, tokens: prompt, rows }]))
  return logprobs
}

/** The most likely token after each of `count` positions from `first` on, the text being given. */
export async function mostLikely(
  model: NativeModel,
  tokens: readonly number[],
  first: number,
  count: number,
): Promise<number[]> {
  model.setSlot(0, greedyState(tokens))
  const rows = Array.from({ length: count }, (_, i) => ({ at: first + i, target: 0, top: 1 }))
  const { topTokens } = await model.step(makeBatch(model, [{ slot: 0, first: 0, tokens, rows }]))
  return Array.from(topTokens)
}

export function standardDeviation(values: Float32Array): number {
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length
  return Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length)
}

/** A two-dimensional (or flat) float32 array of a .npy file in test/fixtures, row by row. */
export function readNpy(path: string): Float32Array {
  const bytes = readFileSync(new URL(`../fixtures/${path}`, import.meta.url))
  const header = bytes.subarray(10, 10 + bytes.readUInt16LE(8)).toString('latin1')
  if (!header.includes("'<f4'") || header.includes("'fortran_order': True")) throw new Error(`${path}: ${header}`)
  const data = bytes.subarray(10 + bytes.readUInt16LE(8))
  return new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength))
}

/** Natural log of the softmax. */
export function logSoftmax(logits: Float32Array): Float64Array {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity)
  const sum = logits.reduce((total, x) => total + Math.exp(x - top), 0)
  return Float64Array.from(logits, (x) => x - top - Math.log(sum))
}
