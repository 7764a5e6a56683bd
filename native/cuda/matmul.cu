#include "cuda/matmul.h"

#include "cuda/tiled_kernel.cuh"

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
