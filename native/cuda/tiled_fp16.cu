#include "cuda/tiled_kernel.cuh"

namespace edgeshift::cuda {

Status tiled_fp16(const TiledParams& params, const Launch& on) {
  return launch_tiled_tokens<Precision::fp16, false>(params, on);
}

}  // namespace edgeshift::cuda
