#include "cuda/matmul.h"

#include "cuda/gemv_kernel.cuh"

namespace edgeshift::cuda {

bool gemv_fits(const PackedMatrix& weight, int t, const DeviceTraits& device) {
  if (t > kGemvTokens || weight.k % 8 != 0) return false;
  StripLayout layout = strip_layout(weight.precision, weight.n, weight.k, weight.group);
  // As GemvShared counts.
  size_t ring = size_t(layout.chunk_bytes()) * gemv_slots(layout.chunk_bytes());
  size_t activations = size_t(2) * (layout.chunk * layout.chunks + 32) * t + (layout.scale_bytes ? size_t(64) * layout.flushes() : 0);
  return kGemvWarps * (ring + 128 * t + 4 * kGemvTokens) + activations <= size_t(device.shared_bytes);
}

Status gemv(const FusedMatmulArgs& args, const Launch& on) {
  const PackedMatrix& w = *args.weight;
  if (args.t < 1 || args.t > kGemvTokens) return {Code::invalid_argument, "cuda gemv: 1 to 8 tokens"};
  if (w.k % 8 != 0) return {Code::unsupported, "cuda gemv: k must be a multiple of 8"};
  if (w.permutation) return {Code::invalid_argument, "cuda gemv: inputs in act-order are gathered by the caller"};
  StripLayout layout = strip_layout(w.precision, w.n, w.k, w.group);
  GemvParams params = gemv_params(args, layout);
  if (w.precision == Precision::int4) return gemv_int4(params, layout, on);
  if (w.precision == Precision::int8) return gemv_int8(params, layout, on);
  return gemv_fp16(params, on);
}

}  // namespace edgeshift::cuda
