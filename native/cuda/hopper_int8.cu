#include "cuda/hopper_kernel.cuh"

namespace edgeshift::cuda {

Status hopper_int8(const WideParams& params, const Launch& on) {
  return params.layout.flush == 32 ? launch_hopper<HopperShape<Precision::int8, true>>(params, on)
                                   : launch_hopper<HopperShape<Precision::int8, false>>(params, on);
}

}  // namespace edgeshift::cuda
