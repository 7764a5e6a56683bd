#include "cuda/widen.h"

#include <bit>

#include "cuda/device.cuh"
#include "cuda/tiled_kernel.cuh"

namespace edgeshift::cuda {
namespace {

struct WidenParams {
  const unsigned char* weight;  // of the first strip
  StripLayout layout;
  int chunk_shift, flush_shift;
  int tiles;  // of 64 inputs to write per strip
  unsigned char* out;
};

constexpr int kWarps = 8, kTilesPerWarp = 4;

// A warp turns kTilesPerWarp tiles of 16 rows x 64 inputs. Grid (tiles / 32, strips).
template <Precision kPrecision>
__global__ void __launch_bounds__(kWarps * 32) widen_kernel(const __grid_constant__ WidenParams p) {
  constexpr int kQuads = kPrecision == Precision::int4 ? 1 : 2;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, first = (blockIdx.x * kWarps + threadIdx.x / 32) * kTilesPerWarp;
  const unsigned char* strip = p.weight + blockIdx.y * p.layout.strip_bytes();
  unsigned char* out = p.out + blockIdx.y * (size_t(p.tiles) * 2048) + lane * 16;
  uint4 codes[kTilesPerWarp][kQuads];
  uint2 scales[kTilesPerWarp][2];
#pragma unroll
  for (int i = 0; i < kTilesPerWarp; ++i) {
    const int tile = first + i;
    if (tile >= p.tiles) break;
    const int chunk = tile >> p.chunk_shift, inside = (tile - (chunk << p.chunk_shift)) * kTileInputs;
    const unsigned char* from = strip + size_t(tile) * (kQuads * 512) + chunk * p.layout.scale_bytes + lane * 16;
    const unsigned char* scale = strip + size_t(chunk + 1) * p.layout.code_bytes + chunk * p.layout.scale_bytes + lane / 4 * 8;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) codes[i][q] = __ldcs(reinterpret_cast<const uint4*>(from + q * 512));
#pragma unroll
    for (int h = 0; h < 2; ++h)
      scales[i][h] = *reinterpret_cast<const uint2*>(scale + (inside + h * 32 >> p.flush_shift) * 64);
  }
#pragma unroll
  for (int i = 0; i < kTilesPerWarp; ++i) {
    if (first + i >= p.tiles) break;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[4];
      dequantize<kPrecision>(codes[i][kQuads == 1 ? 0 : step / 2], step, RowScales(scales[i][step / 2]), a);
      *reinterpret_cast<uint4*>(out + size_t(first + i) * 2048 + step * 512) = {a[0], a[1], a[2], a[3]};
    }
  }
}

}  // namespace

Status widen(const PackedMatrix& weight, int first, int strips, void* out, const Launch& on) {
  const StripLayout layout = strip_layout(weight.precision, weight.n, weight.k, weight.group);
  if (weight.precision == Precision::fp16 || first < 0 || strips < 1 || first + strips > layout.strips)
    return {Code::invalid_argument, "cuda widen: strips of a quantized matrix"};
  WidenParams params{static_cast<const unsigned char*>(weight.data) + first * layout.strip_bytes(),
                     layout,
                     int(std::bit_width(unsigned(layout.chunk / kTileInputs))) - 1,
                     int(std::bit_width(unsigned(layout.flush))) - 1,
                     (weight.k + kTileInputs - 1) / kTileInputs,
                     static_cast<unsigned char*>(out)};
  const int per_block = kWarps * kTilesPerWarp;
  const dim3 grid((params.tiles + per_block - 1) / per_block, strips);
  return launch(on, weight.precision == Precision::int4 ? widen_kernel<Precision::int4> : widen_kernel<Precision::int8>, grid, kWarps * 32,
                0, params);
}

}  // namespace edgeshift::cuda
