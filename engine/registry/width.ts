/** Widths of stored weights, and the rung that a checkpoint natively serves. */
import type { Precision } from '../native.js'
import type { ModelCard } from './model-card.js'
import { elementsOf, type StoredWeight } from './stored-weight.js'

const FLOAT_BITS: Readonly<Record<string, number>> = { f32: 32, f16: 16, bf16: 16 }

/** Bits of a code, without scales. */
export function codeBits({ storage, tensors }: StoredWeight): number {
  switch (storage.method) {
    case 'plain':
      return plainBits(tensors.values?.type ?? '')
    case 'int-quantized':
    case 'float-quantized':
      return 8
    default:
      return storage.bits
  }
}

// Block types carry their width in their name: q4_0, q6_k, iq4_xs, tq2_0, mxfp4, nvfp4.
function plainBits(type: string): number {
  return FLOAT_BITS[type] ?? Number(/\d/.exec(type)?.[0] ?? 16)
}

/** The narrowest rung that holds codes of so many bits. */
export function rungOf(bits: number): Precision {
  if (bits > 8) return 'fp16'
  return bits > 4 ? 'int8' : 'int4'
}

/** The rung that most values of the layers' matrices are stored in; of all matrices in a model without layers. */
export function storedPrecision(weights: readonly StoredWeight[]): Precision {
  const totals = new Map<Precision, number>()
  for (const weight of weights) {
    if (weight.shape.length !== 2 || weight.slot === 'embed' || weight.slot === 'head') continue
    const rung = rungOf(codeBits(weight))
    totals.set(rung, (totals.get(rung) ?? 0) + elementsOf(weight))
  }
  const [most] = [...totals].toSorted(([, a], [, b]) => b - a)
  return most?.[0] ?? 'fp16'
}

/** The quantization method of the first quantized matrix, as models.yaml spells formats; the container where they are plain. */
export function storageMethod({
  format,
  weights,
}: ModelCard): 'gguf' | 'safetensors' | 'gptq' | 'awq' | 'fp8' | 'compressed-tensors' {
  const quantized = weights.find(({ storage }) => storage.method !== 'plain')
  switch (quantized?.storage.method) {
    case undefined:
    case 'plain':
      return format
    case 'gptq':
    case 'awq':
      return quantized.storage.method
    case 'float-quantized':
      return quantized.storage.layout
    default:
      return 'compressed-tensors'
  }
}

/** How a weight is stored, in a few words: "gptq 4 bit, groups of 128", "bf16", "q4_k". */
export function describeStorage({ storage, tensors }: StoredWeight): string {
  const group =
    'groupSize' in storage ? `, ${storage.groupSize === 0 ? 'one group' : `groups of ${storage.groupSize}`}` : ''
  switch (storage.method) {
    case 'plain':
      return tensors.values?.type ?? '?'
    case 'gptq':
      return `gptq ${storage.bits} bit${group}${storage.actOrder ? ', act-order' : ''}`
    case 'awq':
      return `awq ${storage.bits} bit ${storage.version}${group}`
    case 'pack-quantized':
      return `compressed-tensors ${storage.bits} bit${group}${storage.symmetric ? '' : ', asymmetric'}`
    case 'int-quantized':
      return `compressed-tensors int8${group}`
    default: {
      const { layout, blockOutputs, blockInputs } = storage
      const blocks = blockInputs === 0 ? '' : `, blocks of ${blockOutputs} x ${blockInputs}`
      return `${layout === 'fp8' ? '' : `${layout} `}fp8${blocks}`
    }
  }
}
