#include "cuda/hopper_kernel.cuh"

namespace edgeshift::cuda {

Status hopper_fp16(const WideParams& params, const Launch& on) {
  return launch_hopper<HopperShape<Precision::fp16, false>>(params, on);
}

}  // namespace edgeshift::cuda
