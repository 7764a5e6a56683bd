#include "cuda/hopper_stream.cuh"

namespace edgeshift::cuda {

Status stream_int4(StreamParams& params, const Launch& on) {
  return params.product.layout.flush == 32 ? launch_stream_tiles<Precision::int4, true>(params, on)
                                           : launch_stream_tiles<Precision::int4, false>(params, on);
}

}  // namespace edgeshift::cuda
