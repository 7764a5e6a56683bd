#include "cuda/hopper_stream.cuh"

namespace edgeshift::cuda {

Status stream_int8(StreamParams& params, const Launch& on) {
  return params.product.layout.flush == 32 ? launch_stream_tokens<Precision::int8, true, 1>(params, on)
                                           : launch_stream_tiles<Precision::int8, false>(params, on);
}

}  // namespace edgeshift::cuda
