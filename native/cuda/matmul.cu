#include "cuda/matmul.h"

#include "cuda/input_tiles.h"
#include "cuda/stream.h"
#include "cuda/tiled_kernel.cuh"
#include "cuda/wide_product.cuh"
#include "cuda/widen.h"

namespace edgeshift::cuda {

size_t matmul_workspace_bytes(const DeviceTraits& device) {
  // Two parts per block; where two blocks share a multiprocessor their tiles are at most half as large.
  size_t partial = size_t(kTiledRows) * kTiledMaxTokens * 4;
  return size_t(kMatmulCounters) * 4 + partial * 2 * device.multiprocessors;
}

namespace {

TiledParams tiled_params(const FusedMatmulArgs& args, void* workspace) {
  const PackedMatrix& w = *args.weight;
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
  params.partials = reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + size_t(kMatmulCounters) * 4);
  return params;
}

}  // namespace

bool stream_fits(const PackedMatrix& weight, int t, const DeviceTraits& device) {
  return device.hopper && t >= kLeastStreamTokens && t <= kMostStreamTokens && weight.k % kTileInputs == 0;
}

namespace {

Status launch_stream(const FusedMatmulArgs& args, void* workspace, StreamParams& params, const Launch& on) {
#ifdef EDGESHIFT_HOPPER
  const PackedMatrix& w = *args.weight;
  if (args.t < 1 || args.norm || args.x_tile_bytes == 0) return {Code::invalid_argument, "cuda stream_matmul: inputs in tiles, no norm"};
  if (w.permutation) return {Code::invalid_argument, "cuda stream_matmul: inputs in act-order are gathered by the caller"};
  if (!on.device.hopper || args.t > kMostStreamTokens || w.k % kTileInputs != 0)
    return {Code::unsupported, "cuda stream_matmul: this device, so many tokens or this number of inputs"};
  params.product = tiled_params(args, workspace);
  params.x_tile_bytes = args.x_tile_bytes;
  params.out_tile_bytes = args.out_tile_bytes;
  if (w.precision == Precision::int4) return stream_int4(params, on);
  if (w.precision == Precision::int8) return stream_int8(params, on);
  return stream_fp16(params, on);
#else
  return {Code::unsupported, "cuda stream_matmul: not in this build"};
#endif
}

}  // namespace

Status stream_matmul(const FusedMatmulArgs& args, void* workspace, const Launch& on) {
  StreamParams params{};
  return launch_stream(args, workspace, params, on);
}

Status stream_matmul_parts(const FusedMatmulArgs& args, void* workspace, OutputParts& parts, const Launch& on) {
  if (args.epilogue != Epilogue::add || args.bias) return {Code::invalid_argument, "cuda stream_matmul_parts: Epilogue::add, no bias"};
  StreamParams params{};
  params.leave_parts = true;
  ES_RETURN_IF_ERROR(launch_stream(args, workspace, params, on));
  parts = params.leave_parts ? OutputParts{params.product.partials, params.splits} : OutputParts();
  return {};
}

Status tiled_matmul(const FusedMatmulArgs& args, void* workspace, const Launch& on) {
  const PackedMatrix& w = *args.weight;
  if (args.t < 1 || args.norm || args.x_tile_bytes > 0) return {Code::invalid_argument, "cuda tiled_matmul: t >= 1, rows, no norm"};
  if (w.permutation) return {Code::invalid_argument, "cuda tiled_matmul: inputs in act-order are gathered by the caller"};
  if (w.k % 8 != 0) return {Code::unsupported, "cuda tiled_matmul: k must be a multiple of 8"};
  const TiledParams params = tiled_params(args, workspace);
  if (w.precision == Precision::int4) return tiled_int4(params, on);
  if (w.precision == Precision::int8) return tiled_int8(params, on);
  return tiled_fp16(params, on);
}

bool wide_fits(const PackedMatrix& weight, int t, const DeviceTraits& device) {
  return t >= kWideTokens && weight.k % 8 == 0 && size_t(device.shared_bytes) >= kWideSharedBytes;
}

size_t widened_bytes(const PackedMatrix& weight, const DeviceTraits& device) {
  if (weight.precision == Precision::fp16 || !device.fast_products) return 0;
  const size_t all = widened_strip_bytes(weight.k) * size_t((weight.n + kStripRows - 1) / kStripRows);
  return std::min(all, kMostWidenedBytes);
}

namespace {

Status launch_product(Precision precision, const WideParams& params, const Launch& on) {
#ifdef EDGESHIFT_HOPPER
  if (on.device.hopper && precision == Precision::fp16) return hopper_fp16(params, on);
  if (on.device.hopper && precision == Precision::int8) return hopper_int8(params, on);
  if (on.device.hopper) return hopper_int4(params, on);
#endif
  if (precision == Precision::int4) return wide_int4(params, on);
  if (precision == Precision::int8) return wide_int8(params, on);
  return wide_fp16(params, on);
}

void set_weight(WideParams& params, const StripLayout& layout, const void* data) {
  params.layout = layout;
  params.weight = static_cast<const unsigned char*>(data);
  params.chunk_shift = std::bit_width(unsigned(layout.chunk / kTileInputs)) - 1;
  params.flush_shift = std::bit_width(unsigned(layout.flush)) - 1;
}

// Strips by strips: as many as the scratch holds become f16 and are multiplied.
Status widened_product(const PackedMatrix& w, WideParams params, const WideScratch& scratch, const Launch& on) {
  const StripLayout layout = strip_layout(Precision::fp16, w.n, w.k, 0);
  const NextRead next = params.next;
  const int most = int(std::min(scratch.widened_bytes / layout.strip_bytes(), size_t(layout.strips)));
  const int step = most == layout.strips ? most : most / kWidestStrips * kWidestStrips;
  for (int first = 0; first < layout.strips; first += step) {
    const int count = std::min(step, layout.strips - first);
    ES_RETURN_IF_ERROR(widen(w, first, count, scratch.widened, on));
    set_weight(params, layout, static_cast<const unsigned char*>(scratch.widened) - first * layout.strip_bytes());
    params.layout.strips = first + count;
    params.first_strip = first;
    params.weights_written = true;
    params.next = first + count == layout.strips ? next : NextRead();
    ES_RETURN_IF_ERROR(launch_product(Precision::fp16, params, on));
  }
  return {};
}

}  // namespace

Status wide_matmul(const FusedMatmulArgs& args, const WideScratch& scratch, const Launch& on) {
  const PackedMatrix& w = *args.weight;
  if (args.t < 1 || args.norm) return {Code::invalid_argument, "cuda wide_matmul: t >= 1 and no norm"};
  if (w.permutation) return {Code::invalid_argument, "cuda wide_matmul: inputs in act-order are gathered by the caller"};
  WideParams params{};
  const StripLayout layout = strip_layout(w.precision, w.n, w.k, w.group);
  set_weight(params, layout, w.data);
  params.n = w.n;
  params.t = args.t;
  params.x = static_cast<const unsigned char*>(args.x);
  params.x_tile_bytes = padded_tokens(args.t) * kTileInputs * 2;
  params.bias = args.bias;
  params.out = args.out;
  params.epilogue = args.epilogue;
  params.activation = args.activation;
  params.next = args.next;
  params.counters = static_cast<int*>(scratch.workspace);
  params.partials = reinterpret_cast<float*>(static_cast<unsigned char*>(scratch.workspace) + size_t(kMatmulCounters) * 4);
  const bool room = scratch.widened_bytes >= widened_strip_bytes(w.k) * kWidestStrips;
  const bool widens = w.precision != Precision::fp16 && on.device.fast_products && args.t >= (on.device.hopper ? kWidenTokensHopper : kWidenTokens) && room;
  params.k_tiles = widens ? (w.k + kTileInputs - 1) / kTileInputs : input_tiles(layout);
  return widens ? widened_product(w, params, scratch, on) : launch_product(w.precision, params, on);
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
