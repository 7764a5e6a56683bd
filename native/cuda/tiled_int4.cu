#include "cuda/tiled_kernel.cuh"

namespace edgeshift::cuda {

Status tiled_int4(const TiledParams& params, const Launch& on) {
  return params.layout.flush == 32 ? launch_tiled_tokens<Precision::int4, true>(params, on)
                                   : launch_tiled_tokens<Precision::int4, false>(params, on);
}

}  // namespace edgeshift::cuda
