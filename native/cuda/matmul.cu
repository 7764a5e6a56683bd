#include "cuda/matmul.h"

#include "cuda/tiled_kernel.cuh"
#include "cuda/wide_product.cuh"

namespace edgeshift::cuda {

size_t matmul_workspace_bytes(const DeviceTraits& device) {
  // Two parts per block; where two blocks share a multiprocessor their tiles are at most half as large.
  size_t partial = size_t(kTiledRows) * kTiledMaxTokens * 4;
  return size_t(kTiledCounters) * 4 + partial * 2 * device.multiprocessors;
}

Status tiled_matmul(const FusedMatmulArgs& args, void* workspace, const Launch& on) {
  const PackedMatrix& w = *args.weight;
  if (args.t < 1 || args.norm) return {Code::invalid_argument, "cuda tiled_matmul: t >= 1 and no norm"};
  if (w.permutation) return {Code::invalid_argument, "cuda tiled_matmul: inputs in act-order are gathered by the caller"};
  if (w.k % 8 != 0) return {Code::unsupported, "cuda tiled_matmul: k must be a multiple of 8"};
  TiledParams params{};
  params.weight = static_cast<const unsigned char*>(w.data);
  params.layout = strip_layout(w.precision, w.n, w.k, w.group);
  params.n = w.n;
  params.k = w.k;
  params.t = args.t;
  params.x = static_cast<const half*>(args.x);
  params.bias = args.bias;
  params.out = args.out;
  params.epilogue = args.epilogue;
  params.activation = args.activation;
  params.next = args.next;
  params.counters = static_cast<int*>(workspace);
  params.partials = reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + size_t(kTiledCounters) * 4);
  if (w.precision == Precision::int4) return tiled_int4(params, on);
  if (w.precision == Precision::int8) return tiled_int8(params, on);
  return tiled_fp16(params, on);
}

bool wide_fits(const PackedMatrix& weight, int t, const DeviceTraits& device) {
  return t >= kWideTokens && weight.k % 8 == 0 && size_t(device.shared_bytes) >= kWideSharedBytes;
}

Status wide_matmul(const FusedMatmulArgs& args, void* workspace, const Launch& on) {
  const PackedMatrix& w = *args.weight;
  if (args.t < 1 || args.norm) return {Code::invalid_argument, "cuda wide_matmul: t >= 1 and no norm"};
  if (w.permutation) return {Code::invalid_argument, "cuda wide_matmul: inputs in act-order are gathered by the caller"};
  WideParams params{};
  params.weight = static_cast<const unsigned char*>(w.data);
  params.layout = strip_layout(w.precision, w.n, w.k, w.group);
  params.n = w.n;
  params.t = args.t;
  params.x = static_cast<const unsigned char*>(args.x);
  params.x_tile_bytes = padded_tokens(args.t) * kTileInputs * 2;
  params.bias = args.bias;
  params.out = args.out;
  params.epilogue = args.epilogue;
  params.activation = args.activation;
  params.next = args.next;
  params.chunk_shift = std::bit_width(unsigned(params.layout.chunk / kTileInputs)) - 1;
  params.flush_shift = std::bit_width(unsigned(params.layout.flush)) - 1;
  params.k_tiles = input_tiles(params.layout);
  params.counters = static_cast<int*>(workspace);
  params.partials = reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + size_t(kTiledCounters) * 4);
#ifdef EDGESHIFT_HOPPER
  if (on.device.hopper) {
    if (w.precision == Precision::int4) return hopper_int4(params, on);
    if (w.precision == Precision::int8) return hopper_int8(params, on);
    return hopper_fp16(params, on);
  }
#endif
  if (w.precision == Precision::int4) return wide_int4(params, on);
  if (w.precision == Precision::int8) return wide_int8(params, on);
  return wide_fp16(params, on);
}

Status matmul(const MatmulArgs<f16>& args, void* workspace, const Launch& on) {
  FusedMatmulArgs fused;
  fused.weight = args.weight;
  fused.x = args.x;
  fused.bias = args.bias;
  fused.out = args.y;
  fused.t = args.t;
  return gemv_fits(*args.weight, args.t, on.device) ? gemv(fused, on) : tiled_matmul(fused, workspace, on);
}

}  // namespace edgeshift::cuda
