/** Bytes of a rung's weights before it is loaded, counted as the CPU backend does (native/model/cpu_weights.cpp). */
import type { ModelSpec, Precision } from '../native.js'
import { elementsOf, type StoredWeight } from './stored-weight.js'

const TILE_ROWS = 16
const GROUP = 32
const HEAD_MULTIPLE = 16
const HALF_BYTES = 2
const FLOAT_BYTES = 4
const PAGE = 4096
const HUGE_PAGE = 2 * 2 ** 20

/** Weights of these types keep a minimum beside the scale also at 8 bits. */
const WITH_MINIMUM = new Set(['q4_1', 'q5_1'])
/** An embedding or head of another type stays at 8 bits on the int4 rung. */
const FOUR_BITS = new Set(['q4_0', 'q4_1'])
/** Projections that the backend stacks along their rows into one matrix. */
const STACKED: Readonly<Record<string, string>> = { q: 'qkv', k: 'qkv', v: 'qkv', gate: 'gate_up', up: 'gate_up' }
const BIASES = new Set(['q_bias', 'k_bias', 'v_bias'])

interface Matrix {
  rows: number
  columns: number
  precision: Precision
  minimums: boolean
}

/** What the sizes depend on; a ModelCard has it. */
interface Weights {
  spec: ModelSpec
  weights: readonly StoredWeight[]
}

/** Exact for the CPU backend; once it is loaded NativeModel.weightBytes counts. */
export function estimateWeightBytes({ spec, weights }: Weights, precision: Precision): number {
  const matrices = new Map<string, Matrix>()
  const biased = new Set<string>()
  let vectors = 0
  for (const weight of weights) {
    const [prefix, name] = splitSlot(weight.slot)
    if (weight.shape.length === 2)
      stack(matrices, `${prefix}${STACKED[name] ?? name}`, toMatrix(spec, name, weight, precision))
    else if (BIASES.has(name)) biased.add(prefix)
    else vectors += elementsOf(weight)
  }
  // The biases of q, k and v are one vector, with zeros for those that are absent.
  vectors += biased.size * (spec.numHeads + 2 * spec.numKvHeads) * paddedHeadDim(spec)
  const total = [...matrices.values()].reduce((sum, matrix) => sum + packedBytes(matrix), 0)
  return roundUp(total, total < HUGE_PAGE ? PAGE : HUGE_PAGE) + vectors * FLOAT_BYTES
}

function splitSlot(slot: string): [prefix: string, name: string] {
  const cut = slot.lastIndexOf('.') + 1
  return [slot.slice(0, cut), slot.slice(cut)]
}

function toMatrix(spec: ModelSpec, name: string, weight: StoredWeight, asked: Precision): Matrix {
  const [rows = 0, columns = 0] = weight.shape
  const type = weight.tensors.values?.type ?? ''
  const vocabulary = name === 'embed' || name === 'head'
  const precision = vocabulary && asked === 'int4' && !FOUR_BITS.has(type) ? 'int8' : asked
  const padding = paddedHeadDim(spec) / spec.headDim
  // Padded heads are converted from float: their blocks are new ones.
  const converted = padding !== 1 && (STACKED[name] === 'qkv' || name === 'o')
  return {
    rows: STACKED[name] === 'qkv' ? rows * padding : rows,
    columns: name === 'o' ? columns * padding : columns,
    precision,
    minimums: precision === 'int4' || (precision === 'int8' && WITH_MINIMUM.has(type) && !converted),
  }
}

function stack(matrices: Map<string, Matrix>, key: string, part: Matrix): void {
  const whole = matrices.get(key)
  if (whole === undefined) matrices.set(key, part)
  else matrices.set(key, { ...whole, rows: whole.rows + part.rows, minimums: whole.minimums || part.minimums })
}

/** Tiles of 16 rows, each a multiple of 64 bytes (native/cpu/tile.h). */
function packedBytes({ rows, columns, precision, minimums }: Matrix): number {
  const tiles = Math.ceil(rows / TILE_ROWS)
  if (precision === 'fp16') return tiles * roundUp(columns * TILE_ROWS * HALF_BYTES, 64)
  const groups = Math.ceil(columns / GROUP)
  const parameters = groups * TILE_ROWS * HALF_BYTES * (minimums ? 2 : 1)
  const codes = (groups * GROUP * TILE_ROWS) / (precision === 'int4' ? 2 : 1)
  return tiles * (roundUp(parameters, 64) + codes)
}

function paddedHeadDim(spec: ModelSpec): number {
  return roundUp(spec.headDim, HEAD_MULTIPLE)
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}
