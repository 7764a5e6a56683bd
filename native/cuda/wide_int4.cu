#include "cuda/wide_kernel.cuh"

namespace edgeshift::cuda {

Status wide_int4(const WideParams& params, const Launch& on) {
  return params.layout.flush == 32 ? launch_wide<WideShape<Precision::int4, true, 4, 2, 3>>(params, on)
                                   : launch_wide<WideShape<Precision::int4, false, 4, 2, 3>>(params, on);
}

}  // namespace edgeshift::cuda
