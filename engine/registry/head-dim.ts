/** Values of a head as a backend keeps it: a multiple of 16 on the CPU, one of the kernels' sizes on a GPU. */

const CPU_MULTIPLE = 16
/** native/cuda/load.h; larger heads are refused there. */
const CUDA_SIZES = [64, 96, 128, 256]

/** `headDim` padded as the backend of this kind pads it. */
export function keptHeadDim(kind: 'cpu' | 'cuda', headDim: number): number {
  if (kind === 'cuda') return CUDA_SIZES.find((size) => size >= headDim) ?? headDim
  return Math.ceil(headDim / CPU_MULTIPLE) * CPU_MULTIPLE
}
