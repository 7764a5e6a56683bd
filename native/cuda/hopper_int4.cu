#include "cuda/hopper_kernel.cuh"

namespace edgeshift::cuda {

Status hopper_int4(const WideParams& params, const Launch& on) {
  return params.layout.flush == 32 ? launch_hopper<HopperShape<Precision::int4, true>>(params, on)
                                   : launch_hopper<HopperShape<Precision::int4, false>>(params, on);
}

}  // namespace edgeshift::cuda
