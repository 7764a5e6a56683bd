/**
 * Tensors of a quantized module by method, with the shapes that its N outputs, K inputs and settings demand. Layouts:
 * gptq (AutoGPTQ, GPTQModel): codes [K * bits / 32, N] along K; zero points [groups, N * bits / 32] along N.
 * awq (AutoAWQ): gemm codes [K, N / 8], with 8 bits [K, N / 4] (GPTQModel); gemv codes [N, K / 8]; gemv_fast codes int16 [N / 4, K].
 * pack-quantized (compressed-tensors): codes [N, K * bits / 32] along K; zero points [N * bits / 32, groups].
 * float-quantized: codes [N, K]; scales [1], [N, 1] or one for each block. "fp8" (DeepSeek, Qwen3, transformers) names
 * them weight_scale_inv, though the weight is code * scale there too.
 */
import type { Storage, TensorRole } from './stored-weight.js'

/** Everything but plain. */
export type Quantized = Exclude<Storage, { method: 'plain' }>

/** A tensor that a module has. */
export interface ExpectedTensor {
  role: TensorRole
  /** After the module's name. */
  suffix: string
  types: readonly string[]
  /** Any of these. */
  shapes: readonly (readonly number[])[]
  optional?: boolean
}

const FLOATS = ['f16', 'bf16', 'f32']
const I32 = ['i32']
const WORD = 32

const whole = (value: number, bits: number): boolean => (value * bits) % WORD === 0

/** Why no module of N outputs and K inputs can be stored so; undefined when it can. */
export function layoutFault(storage: Quantized, n: number, k: number): string | undefined {
  const { method } = storage
  const group = 'groupSize' in storage ? storage.groupSize : 0
  switch (method) {
    case 'gptq':
      if (!whole(k, storage.bits) || !whole(n, storage.bits))
        return `${n} x ${k} is not whole words of ${storage.bits} bits`
      return undefined
    case 'awq':
      if (group !== 0 && k % group !== 0) return `group_size ${group} does not divide its ${k} inputs`
      if (n % 8 !== 0 || k % 8 !== 0) return `${n} x ${k} is not whole words of ${storage.bits} bits`
      return undefined
    default:
      return group !== 0 && k % group !== 0 ? `group_size ${group} does not divide its ${k} inputs` : undefined
  }
}

/** Groups that a module's K inputs fall into. */
export function groupCount(storage: Quantized, k: number): number {
  return 'groupSize' in storage && storage.groupSize > 0 ? Math.ceil(k / storage.groupSize) : 1
}

/** The tensors of a module of N outputs and K inputs. */
export function expectedTensors(storage: Quantized, n: number, k: number): ExpectedTensor[] {
  const groups = groupCount(storage, k)
  switch (storage.method) {
    case 'gptq':
      return gptq(storage, n, k, groups)
    case 'awq':
      return awq(storage, n, k, groups)
    case 'pack-quantized':
      return packQuantized(storage, n, k, groups)
    case 'int-quantized':
      return direct('i8', n, k, groups)
    default:
      return floatQuantized(storage, n, k)
  }
}

const codes = (suffix: string, type: string, ...shape: number[]): ExpectedTensor => ({
  role: 'codes',
  suffix,
  types: [type],
  shapes: [shape],
})

const scales = (suffix: string, ...shapes: number[][]): ExpectedTensor => ({
  role: 'scales',
  suffix,
  types: FLOATS,
  shapes,
})

const zeroPoints = (suffix: string, types: readonly string[], ...shape: number[]): ExpectedTensor => ({
  role: 'zeroPoints',
  suffix,
  types,
  shapes: [shape],
})

function gptq(storage: Extract<Quantized, { method: 'gptq' }>, n: number, k: number, groups: number): ExpectedTensor[] {
  const { bits, actOrder } = storage
  const optional = !actOrder || groups === 1
  return [
    codes('qweight', 'i32', (k * bits) / WORD, n),
    zeroPoints('qzeros', I32, groups, (n * bits) / WORD),
    scales('scales', [groups, n]),
    { role: 'groupIndex', suffix: 'g_idx', types: I32, shapes: [[k]], optional },
  ]
}

function awq(
  { version, bits, groupSize }: Extract<Quantized, { method: 'awq' }>,
  n: number,
  k: number,
  groups: number,
): ExpectedTensor[] {
  if (version === 'gemm') {
    const words = (n * bits) / WORD
    return [codes('qweight', 'i32', k, words), zeroPoints('qzeros', I32, groups, words), scales('scales', [groups, n])]
  }
  const width = zeroWidth(groups, groupSize)
  if (version === 'gemv')
    return [codes('qweight', 'i32', n, k / 8), zeroPoints('qzeros', I32, n, width), scales('scales', [n, width * 8])]
  return [
    codes('qweight', 'i16', n / 4, k),
    zeroPoints('qzeros', ['f16'], width * 8, n),
    scales('scales', [width * 8, n]),
  ]
}

/** Words of zero points in a row, rounded up as AutoAWQ's kernels want them. */
function zeroWidth(groups: number, groupSize: number): number {
  const multiple = groupSize === 64 ? 2 : groupSize === 32 ? 4 : 1
  return Math.ceil(Math.ceil(groups / 8) / multiple) * multiple
}

function packQuantized(
  { bits, symmetric }: Extract<Quantized, { method: 'pack-quantized' }>,
  n: number,
  k: number,
  groups: number,
): ExpectedTensor[] {
  const perWord = WORD / bits
  return [
    codes('weight_packed', 'i32', n, Math.ceil(k / perWord)),
    scales('weight_scale', [n, groups]),
    ...(symmetric ? [] : [zeroPoints('weight_zero_point', I32, Math.ceil(n / perWord), groups)]),
    { role: 'groupIndex', suffix: 'weight_g_idx', types: I32, shapes: [[k]], optional: true },
  ]
}

function direct(type: string, n: number, k: number, groups: number): ExpectedTensor[] {
  const perTensor = groups === 1 ? [[1], [n]] : []
  return [codes('weight', type, n, k), scales('weight_scale', [n, groups], ...perTensor)]
}

function floatQuantized(
  { layout, blockOutputs, blockInputs }: Extract<Quantized, { method: 'float-quantized' }>,
  n: number,
  k: number,
): ExpectedTensor[] {
  const name = layout === 'fp8' ? 'weight_scale_inv' : 'weight_scale'
  const shapes = blockInputs > 0 ? [[Math.ceil(n / blockOutputs), Math.ceil(k / blockInputs)]] : [[n, 1], [1], [n], []]
  return [codes('weight', 'f8_e4m3', n, k), scales(name, ...shapes)]
}
