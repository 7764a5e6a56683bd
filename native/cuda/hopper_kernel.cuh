// The matrix product of many tokens for compute capability 9.0 (compiled for sm_90a): wgmma with the weights from registers.
//
// A fragment of wgmma's A operand lies in a warp's registers as one of mma.sync does, so the strip layout serves here too:
// codes go from shared memory to registers and become f16 there while the products before are under way. The tiled
// activations are the B operand as they lie. One warp keeps a ring of stages full by bulk copies, two warpgroups take 64 rows
// each of the block's 128 rows x 256 tokens. Blocks stay and walk the tiles; the ring runs on across them.
#pragma once

#include <bit>

#include "cuda/hopper.cuh"
#include "cuda/wide_product.cuh"

namespace edgeshift::cuda {

template <Precision kPrecision, bool kFlushSmall>
struct HopperShape {
  static constexpr Precision precision = kPrecision;
  static constexpr bool quantized = kPrecision != Precision::fp16;
  static constexpr int quads = kPrecision == Precision::int4 ? 1 : kPrecision == Precision::int8 ? 2 : 4;  // per tile of 64
  static constexpr int scale_bytes = quantized ? (kFlushSmall ? 128 : 64) : 0;                             // per strip and tile
  static constexpr int consumers = 8, threads = 32 * consumers + 128;  // warps; one of the last four copies
  static constexpr int warp_strips = 1, strips = consumers * warp_strips;
  static constexpr int group_steps = 2;  // of 16 inputs, whose weights are made at once
  static constexpr int tokens = 256, warp_columns = tokens / 8;
  static constexpr int x_bytes = tokens * 128, codes_at = x_bytes, scales_at = codes_at + strips * quads * 512;
  static constexpr int stage_bytes = (scales_at + strips * scale_bytes + 1023) / 1024 * 1024;
  static constexpr int copied_bytes = scales_at + strips * scale_bytes;
  static constexpr int staged_columns = 4;  // of 8 tokens, staged at a time
  static constexpr int staging = kStagingBytes<warp_strips, staged_columns>;
  static constexpr int stages = std::min(8, (225 * 1024 - consumers * staging) / stage_bytes);
  static constexpr size_t shared = size_t(stages) * stage_bytes + consumers * staging;
  static_assert(stages >= 3);
};

// A place in the ring of stages: shared addresses of its memory and of its barriers, filled and emptied.
template <class Shape>
struct HopperRing {
  uint32_t data, full, empty;
  int slot = 0;
  uint32_t phase = 0;
  __device__ void next() {
    if (++slot == Shape::stages) slot = 0, phase ^= 1;
  }
  __device__ uint32_t full_barrier() const { return full + slot * 8; }
  __device__ uint32_t empty_barrier() const { return empty + slot * 8; }
};

// The copying warp: codes and scales of a strip by two lanes, the activations by one more.
template <class Shape>
__device__ inline void fill_ring(const WideParams& p, HopperRing<Shape> ring, int parts) {
  const int lane = threadIdx.x % 32;
  const bool codes = lane < Shape::strips;
  static_assert(Shape::strips <= 16);
  bool first = true;
  for (int index = blockIdx.x; index < parts; index += gridDim.x) {
    const WideTile tile = WideTile::of(p, index);
    const unsigned char* strip = p.weight + size_t(min(p.first_strip + tile.rows * Shape::strips + lane % 16, p.layout.strips - 1)) * p.layout.strip_bytes();
    const unsigned char* x = p.x + size_t(tile.tokens) * Shape::x_bytes;
    for (int k_tile = tile.k_begin(p); k_tile < tile.k_end(p); ++k_tile) {
      wait_barrier(ring.empty_barrier(), ring.phase ^ 1);
      const uint32_t to = ring.data + ring.slot * Shape::stage_bytes, barrier = ring.full_barrier();
      if (lane == 0) arrive_expecting(barrier, Shape::copied_bytes);
      __syncwarp();
      const int chunk = k_tile >> p.chunk_shift, inside = k_tile - (chunk << p.chunk_shift);
      if (codes) {
        const size_t at = size_t(k_tile) * (Shape::quads * 512) + chunk * p.layout.scale_bytes;
        copy_bulk(to + Shape::codes_at + lane * Shape::quads * 512, strip + at, Shape::quads * 512, barrier);
      } else if (Shape::quantized && lane >= 16 && lane - 16 < Shape::strips) {
        const size_t at = size_t(chunk + 1) * p.layout.code_bytes + chunk * p.layout.scale_bytes + (inside * kTileInputs >> p.flush_shift) * 64;
        copy_bulk(to + Shape::scales_at + (lane - 16) * Shape::scale_bytes, strip + at, Shape::scale_bytes, barrier);
      }
      if (first) wait_for_previous_kernel(), first = false;
      if (lane == 0) copy_bulk(to, x + k_tile * p.x_tile_bytes, Shape::x_bytes, barrier);
      ring.next();
    }
  }
}

// Weights of a warp's strips for some steps of a stage as fragments.
template <class Shape>
__device__ inline void load_weights(const unsigned char* stage, int strip, int first, uint32_t (&a)[Shape::group_steps][Shape::warp_strips][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int s = 0; s < Shape::warp_strips; ++s) {
    const unsigned char* codes = stage + Shape::codes_at + (strip + s) * Shape::quads * 512 + lane * 16;
    const unsigned char* scales = stage + Shape::scales_at + (strip + s) * Shape::scale_bytes + lane / 4 * 8;
    uint4 code;
    uint2 scale = {0, 0};
#pragma unroll
    for (int i = 0; i < Shape::group_steps; ++i) {
      const int step = first + i;
      if (i == 0 || Shape::quads == 4) code = *reinterpret_cast<const uint4*>(codes + step * Shape::quads / 4 * 512);
      if (Shape::quantized && i == 0)
        scale = *reinterpret_cast<const uint2*>(scales + (Shape::scale_bytes == 128 ? step / 2 * 64 : 0));
      dequantize<Shape::precision>(code, step, RowScales(scale), a[i][s]);
    }
  }
}

// The sums of a warp's rows over the stages of one tile, through the ring.
template <class Shape>
__device__ inline void multiply_tile(HopperRing<Shape>& ring, const unsigned char* shared, int stages, int strip,
                                     float (&acc)[Shape::warp_strips][Shape::warp_columns][4]) {
  // Weights of two groups of steps: while the products of one are under way the next one's are made.
  constexpr int kGroup = Shape::group_steps;
  uint32_t a[2][kGroup][Shape::warp_strips][4];
  uint32_t used = 0;
  for (int at = 0; at < stages; ++at) {
    wait_barrier(ring.full_barrier(), ring.phase);
    const unsigned char* weights = shared + ring.slot * Shape::stage_bytes;
    const uint64_t x = row_operand(ring.data + ring.slot * Shape::stage_bytes);
#pragma unroll
    for (int group = 0; group < 4 / kGroup; ++group) {
      auto& part = a[group % 2];
      load_weights<Shape>(weights, strip, group * kGroup, part);
      warpgroup_fence();
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
#pragma unroll
        for (int s = 0; s < Shape::warp_strips; ++s)
          warpgroup_product(acc[s], part[i][s], x + (group * kGroup + i) * 2, at > 0 || group > 0 || i > 0);
      commit_products();
      wait_products<1>();
      if (group == 0 && at > 0 && threadIdx.x % 32 == 0) arrive(used);  // the stage before is no longer read
    }
    used = ring.empty_barrier();
    ring.next();
  }
  wait_products<0>();
  if (threadIdx.x % 32 == 0) arrive(used);
}

// A multiplying warp: its rows of every tile of the block, and where they go.
template <class Shape>
__device__ inline void multiply_tiles(const WideParams& p, HopperRing<Shape> ring, unsigned char* shared, int parts) {
  const int warp = threadIdx.x / 32, strip = warp * Shape::warp_strips;
  unsigned char* staging = shared + Shape::stages * Shape::stage_bytes + warp * Shape::staging;
  wait_for_previous_kernel();  // what the epilogue adds to, or writes, may be in use until then
  for (int index = blockIdx.x; index < parts; index += gridDim.x) {
    const WideTile tile = WideTile::of(p, index);
    float acc[Shape::warp_strips][Shape::warp_columns][4];
    multiply_tile<Shape>(ring, shared, tile.k_end(p) - tile.k_begin(p), strip, acc);
    if (p.splits > 1 && !sum_parts<Shape::consumers * 32>(p, index, acc)) continue;
    const int strip0 = p.first_strip + tile.rows * Shape::strips + strip, token0 = tile.tokens * Shape::tokens;
    if (p.epilogue == Epilogue::add || p.epilogue == Epilogue::logits) {
      store_floats(p, strip0, token0, acc);
      continue;
    }
#pragma unroll
    for (int c = 0; c < Shape::warp_columns; c += Shape::staged_columns) {
      float part[Shape::warp_strips][Shape::staged_columns][4];
#pragma unroll
      for (int s = 0; s < Shape::warp_strips; ++s)
#pragma unroll
        for (int j = 0; j < Shape::staged_columns; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) part[s][j][i] = acc[s][c + j][i];
      store_halves(p, staging, strip0, token0 + c * 8, part);
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1) hopper_kernel(const __grid_constant__ WideParams p) {
  extern __shared__ __align__(1024) unsigned char hopper_shared[];
  __shared__ uint64_t barriers[2 * Shape::stages];
  const int warp = threadIdx.x / 32, parts = p.row_tiles * p.token_tiles * p.splits;
  const HopperRing<Shape> ring{shared_address(hopper_shared), shared_address(barriers), shared_address(barriers + Shape::stages)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::stages; ++i) {
      init_barrier(ring.full + i * 8, 1);
      init_barrier(ring.empty + i * 8, Shape::consumers);
    }
    publish_barriers();
  }
  __syncthreads();
  if (p.weights_written) wait_for_previous_kernel();
  let_next_kernel_start();
  if (warp >= Shape::consumers) {
    give_registers<40>();
    if (warp == Shape::consumers) {
      fill_ring<Shape>(p, ring, parts);
      if (threadIdx.x % 32 == 0) prefetch_share(p.next);
    }
  } else {
    take_registers<232>();
    multiply_tiles<Shape>(p, ring, hopper_shared, parts);
  }
}

template <class Shape>
Status launch_hopper(WideParams params, const Launch& on) {
  const Result<int> tiles = cut_product<Shape>(params, on.device.multiprocessors);
  if (!tiles.ok()) return tiles.status();
  ES_RETURN_IF_ERROR(allow_shared(hopper_kernel<Shape>, Shape::shared));
  return launch(on, hopper_kernel<Shape>, dim3(unsigned(std::min(tiles.value() * params.splits, on.device.multiprocessors))), Shape::threads, Shape::shared, params);
}

}  // namespace edgeshift::cuda
