#include "cuda/tiled_kernel.cuh"

namespace edgeshift::cuda {

Status tiled_int8(const TiledParams& params, const Launch& on) {
  return params.layout.flush == 32 ? launch_tiled_tokens<Precision::int8, true>(params, on)
                                   : launch_tiled_tokens<Precision::int8, false>(params, on);
}

}  // namespace edgeshift::cuda
