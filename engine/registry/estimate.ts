/**
 * Bytes of a rung's weights before it is loaded, counted as the backends do (native/model/cpu_weights.cpp,
 * native/cuda/load.cu).
 */
import type { ModelSpec, Precision } from '../native.js'
import { keptHeadDim } from './head-dim.js'
import { fits, type ResidentForm, residentForm, widthOf } from './resident-form.js'
import { elementsOf, type StoredWeight } from './stored-weight.js'

const TILE_ROWS = 16
const GROUP = 32
const HALF_BYTES = 2
const FLOAT_BYTES = 4
const INDEX_BYTES = 4
const PAGE = 4096
const HUGE_PAGE = 2 * 2 ** 20
const CUDA_ALIGNMENT = 256
const STRIP_ROWS = 16
const BITS: Readonly<Record<Precision, number>> = { fp16: 16, int8: 8, int4: 4 }

/** Projections that the backend stacks along their rows, where their forms agree. */
const STACKED: Readonly<Record<string, string>> = { q: 'qkv', k: 'qkv', v: 'qkv', gate: 'gate_up', up: 'gate_up' }
const QKV = new Set(['q', 'k', 'v', 'qkv'])
const HEAD_NORMS = new Set(['q_norm', 'k_norm'])
/** Vectors that are stacked likewise, with zeros for those that are absent. */
const STACKED_BIASES: Readonly<Record<string, 'qkv' | 'gate_up'>> = {
  q_bias: 'qkv',
  k_bias: 'qkv',
  v_bias: 'qkv',
  qkv_bias: 'qkv',
  gate_bias: 'gate_up',
  up_bias: 'gate_up',
  gate_up_bias: 'gate_up',
}

interface Matrix extends ResidentForm {
  rows: number
  columns: number
}

/** What the sizes depend on; a ModelCard has it. */
interface Weights {
  spec: ModelSpec
  weights: readonly StoredWeight[]
}

/**
 * For a backend; once it is loaded NativeModel.weightBytes counts. Exact but where it depends on what stands in the
 * tensors: 8-bit zero points that are all in the middle and act-order that orders nothing take less.
 */
export function estimateWeightBytes({ spec, weights }: Weights, rung: Precision, kind: 'cpu' | 'cuda' = 'cpu'): number {
  const headDim = keptHeadDim(kind, spec.headDim)
  const matrices = new Map<string, Matrix[]>()
  const biases = new Set<string>()
  const precisionOf = precisions(spec, headDim, weights, rung)
  const vectors: number[] = []
  for (const weight of weights) {
    const [prefix, name] = splitSlot(weight.slot)
    const bias = STACKED_BIASES[name]
    if (weight.shape.length === 2)
      stack(matrices, `${prefix}${STACKED[name] ?? name}`, toMatrix(spec, headDim, weight, precisionOf(weight)))
    else if (bias) biases.add(`${prefix}${bias}`)
    else vectors.push(HEAD_NORMS.has(name) ? headDim : elementsOf(weight))
  }
  for (const bias of biases)
    vectors.push(bias.endsWith('qkv') ? (spec.numHeads + 2 * spec.numKvHeads) * headDim : 2 * spec.intermediateSize)
  const stacks = [...matrices.values()]
  if (kind === 'cpu') return cpuBytes(stacks.flat(), vectors)
  return cudaBytes(stacks.map(asOne), [...vectors, ...spec.ropes.map(({ table }) => table.invFreq.length)])
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0)

function cpuBytes(matrices: readonly Matrix[], vectors: readonly number[]): number {
  const total = sum(matrices.map(packedBytes))
  return roundUp(total, total < HUGE_PAGE ? PAGE : HUGE_PAGE) + sum(vectors) * FLOAT_BYTES
}

/** The driver maps large allocations in whole pieces. */
const mapped = (bytes: number): number => (bytes < HUGE_PAGE / 2 ? bytes : roundUp(bytes, HUGE_PAGE))

/** As the driver takes them (native/cuda/buffer.h). */
function cudaBytes(matrices: readonly Matrix[], vectors: readonly number[]): number {
  const aligned = vectors.map((length) => roundUp(length * FLOAT_BYTES, CUDA_ALIGNMENT))
  return mapped(sum(matrices.map(stripBytes))) + mapped(sum(aligned))
}

/** Parts whose forms differ are read as floats where a stack is one matrix. */
function asOne(parts: readonly Matrix[]): Matrix {
  const [first, ...rest] = parts
  if (first === undefined) throw new Error('a stack without parts')
  if (rest.length === 0) return first
  const rows = sum(parts.map((part) => part.rows))
  return { precision: 'fp16', group: 0, minimums: false, ordered: false, rows, columns: first.columns }
}

function splitSlot(slot: string): [prefix: string, name: string] {
  const cut = slot.lastIndexOf('.') + 1
  return [slot.slice(0, cut), slot.slice(cut)]
}

/** Padded heads are read as floats. */
function isPadded(spec: ModelSpec, headDim: number, name: string): boolean {
  return headDim !== spec.headDim && (QKV.has(name) || name === 'o')
}

/** The precision of every matrix at a rung: kept where the file is made for it, rounded where it is derived. */
function precisions(
  spec: ModelSpec,
  headDim: number,
  weights: readonly StoredWeight[],
  rung: Precision,
): (weight: StoredWeight) => Precision {
  const width = (weight: StoredWeight): Precision =>
    isPadded(spec, headDim, splitSlot(weight.slot)[1]) ? 'fp16' : widthOf(weight)
  const inLayers = weights.filter(({ slot, shape }) => shape.length === 2 && slot.startsWith('layers.')).map(width)
  const keeps = inLayers.some((own) => fits(own, rung))
  const ownRung = inLayers.includes(rung)
  return (weight) => {
    const own = width(weight)
    if (rung === 'fp16') return rung
    if (fits(own, rung)) return ownRung ? own : rung
    if (keeps) return own
    return rung === 'int4' && !weight.slot.startsWith('layers.') ? 'int8' : rung
  }
}

function toMatrix(spec: ModelSpec, headDim: number, weight: StoredWeight, precision: Precision): Matrix {
  const [rows = 0, columns = 0] = weight.shape
  const [, name] = splitSlot(weight.slot)
  if (!isPadded(spec, headDim, name)) return { ...residentForm(weight, precision), rows, columns }
  const padding = headDim / spec.headDim
  const minimums = precision === 'int4'
  const form = { precision, group: precision === 'fp16' ? 0 : GROUP, minimums, ordered: false }
  return { ...form, rows: name === 'o' ? rows : rows * padding, columns: name === 'o' ? columns * padding : columns }
}

function stack(matrices: Map<string, Matrix[]>, key: string, part: Matrix): void {
  const parts = matrices.get(key) ?? []
  const last = parts.at(-1)
  // Parts in an order of their own may turn out to share it.
  const joins = last?.precision === part.precision && last.group === part.group && !last.ordered && !part.ordered
  if (last && joins)
    parts[parts.length - 1] = { ...last, rows: last.rows + part.rows, minimums: last.minimums || part.minimums }
  else parts.push(part)
  matrices.set(key, parts)
}

/** Tiles of 16 rows, each a multiple of 64 bytes (native/cpu/tile.h); act-order's list of inputs behind them. */
function packedBytes({ rows, columns, precision, group, minimums, ordered }: Matrix): number {
  const tiles = Math.ceil(rows / TILE_ROWS)
  if (precision === 'fp16') return tiles * roundUp(columns * TILE_ROWS * HALF_BYTES, 64)
  const groups = Math.ceil(columns / group)
  const parameters = groups * TILE_ROWS * HALF_BYTES * (minimums ? 2 : 1)
  const codes = (groups * group * TILE_ROWS) / (precision === 'int4' ? 2 : 1)
  return tiles * (roundUp(parameters, 64) + codes) + (ordered ? roundUp(columns * INDEX_BYTES, 64) : 0)
}

/** Strips of 16 rows in chunks of inputs (native/cuda/strip_layout.h); act-order's list of inputs behind them. */
function stripBytes({ rows, columns, precision, group, ordered }: Matrix): number {
  const bits = BITS[precision]
  const quantized = precision !== 'fp16'
  const shared = [128, 64].find((inputs) => group % inputs === 0) ?? 32
  const flush = quantized ? shared : 64
  const [wide, narrow] = [1024 / bits, Math.max(64, flush)]
  const chunk = roundUp(columns, wide) * 15 <= roundUp(columns, narrow) * 16 ? wide : narrow
  const chunkBytes = (STRIP_ROWS * chunk * bits) / 8 + (quantized ? 64 * (chunk / flush) : 0)
  const bytes = Math.ceil(rows / STRIP_ROWS) * (roundUp(columns, chunk) / chunk) * chunkBytes
  return roundUp(bytes, CUDA_ALIGNMENT) + (ordered ? roundUp(columns * INDEX_BYTES, CUDA_ALIGNMENT) : 0)
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}
