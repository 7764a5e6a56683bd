#include "cuda/wide_kernel.cuh"

namespace edgeshift::cuda {

Status wide_int8(const WideParams& params, const Launch& on) {
  return params.layout.flush == 32 ? launch_wide<WideShape<Precision::int8, true, 2, 2, 3>>(params, on)
                                   : launch_wide<WideShape<Precision::int8, false, 2, 2, 3>>(params, on);
}

}  // namespace edgeshift::cuda
