#include "cuda/hopper_stream.cuh"

namespace edgeshift::cuda {

Status stream_fp16(StreamParams& params, const Launch& on) {
  return launch_stream_tokens<Precision::fp16, false, 1>(params, on);
}

}  // namespace edgeshift::cuda
