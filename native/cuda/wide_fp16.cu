#include "cuda/wide_kernel.cuh"

namespace edgeshift::cuda {

Status wide_fp16(const WideParams& params, const Launch& on) {
  return launch_wide<WideShape<Precision::fp16, false, 4, 2, 4>>(params, on);
}

}  // namespace edgeshift::cuda
