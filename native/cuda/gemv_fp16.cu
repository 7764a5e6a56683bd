#include "cuda/gemv_kernel.cuh"

namespace edgeshift::cuda {

Status gemv_fp16(const GemvParams& params, const Launch& on) {
  return launch_gemv<GemvFormat<Precision::fp16, 64, 64>>(params, on);
}

}  // namespace edgeshift::cuda
