#include "cuda/gemv_kernel.cuh"

namespace edgeshift::cuda {

Status gemv_int4(const GemvParams& params, const StripLayout& layout, const Launch& on) {
  if (layout.flush == 32 && layout.chunk == 256) return launch_gemv<GemvFormat<Precision::int4, 32, 256>>(params, on);
  if (layout.flush == 64 && layout.chunk == 256) return launch_gemv<GemvFormat<Precision::int4, 64, 256>>(params, on);
  if (layout.flush == 128 && layout.chunk == 256) return launch_gemv<GemvFormat<Precision::int4, 128, 256>>(params, on);
  if (layout.flush == 32 && layout.chunk == 64) return launch_gemv<GemvFormat<Precision::int4, 32, 64>>(params, on);
  if (layout.flush == 64 && layout.chunk == 64) return launch_gemv<GemvFormat<Precision::int4, 64, 64>>(params, on);
  if (layout.flush == 128 && layout.chunk == 128) return launch_gemv<GemvFormat<Precision::int4, 128, 128>>(params, on);
  return {Code::unsupported, "cuda gemv: no kernel for this group"};
}

}  // namespace edgeshift::cuda
