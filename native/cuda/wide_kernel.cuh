// The matrix product of many tokens for every card from sm_80 on: mma.sync fed by a cp.async ring.
//
// A block computes kRowWarps x 64 rows by kTokenWarps x 64 tokens, a warp 64 x 64 of them: 128 sums a thread. All that the
// tensor cores wait for is fetched one step of 16 inputs ahead: the fragments of the activations by ldmatrix, the weights
// out of their codes between the products of the step before, strip after strip, as soon as the strip's last fragment has
// been used. The barrier of a stage (64 inputs) lies between two steps, with the last step's fragments already in registers.
#pragma once

#include <bit>

#include "cuda/wide_product.cuh"

namespace edgeshift::cuda {

template <Precision kPrecision, bool kFlushSmall, int kRowWarps, int kTokenWarps, int kStages, int kBlocks = 1>
struct WideShape {
  static constexpr Precision precision = kPrecision;
  static constexpr bool quantized = kPrecision != Precision::fp16;
  static constexpr int row_warps = kRowWarps, token_warps = kTokenWarps, stages = kStages, blocks = kBlocks;
  static constexpr int threads = 32 * kRowWarps * kTokenWarps;
  static constexpr int warp_strips = 4, warp_columns = 8;
  static constexpr int strips = warp_strips * kRowWarps, tokens = 64 * kTokenWarps;
  static constexpr int quads = kPrecision == Precision::int4 ? 1 : kPrecision == Precision::int8 ? 2 : 4;  // per tile of 64
  static constexpr int scale_bytes = quantized ? (kFlushSmall ? 128 : 64) : 0;                             // per strip and tile
  static constexpr int accumulators = warp_strips * warp_columns * 4;
  static constexpr int x_bytes = tokens * 128, codes_at = x_bytes, scales_at = codes_at + strips * quads * 512;
  static constexpr int stage_bytes = scales_at + strips * scale_bytes;
  static constexpr int staging = kStagingBytes<warp_strips, warp_columns>;
  static constexpr size_t shared = std::max<size_t>(size_t(stage_bytes) * kStages, size_t(staging) * kRowWarps * kTokenWarps);
};

// One thread's copies of a stage, cut into three parts that are issued between the products.
template <class Shape>
class WideLoader {
 public:
  static constexpr int kInputs = Shape::x_bytes / 16 / Shape::threads;
  static constexpr int kCodes = Shape::strips * Shape::quads * 32 / Shape::threads;
  static constexpr int kScalePieces = Shape::scale_bytes / 16;  // per strip
  static constexpr int kScaleLanes = kScalePieces > 0 ? kScalePieces : 1;
  static constexpr int kParts = 3;
  static_assert(Shape::strips * kScalePieces <= Shape::threads);

  __device__ WideLoader(const WideParams& p, unsigned char* shared, const WideTile& tile)
      : p_(p), to_(shared_address(shared) + threadIdx.x * 16),
        x_(p.x + size_t(tile.tokens) * Shape::x_bytes + threadIdx.x * 16), strip0_(p.first_strip + tile.rows * Shape::strips) {}

  // The strip's bytes; strips past the end repeat the last one: nothing of them is stored.
  __device__ const unsigned char* strip(int index) const {
    return p_.weight + size_t(min(strip0_ + index, p_.layout.strips - 1)) * p_.layout.strip_bytes();
  }

  __device__ void weights(int slot, int k_tile, int part) const {
    const uint32_t to = to_ + slot * Shape::stage_bytes + Shape::codes_at;
    const int chunk = k_tile >> p_.chunk_shift;
    const size_t at = size_t(k_tile) * (Shape::quads * 512) + chunk * p_.layout.scale_bytes;
#pragma unroll
    for (int i = part * kCodes / kParts; i < (part + 1) * kCodes / kParts; ++i) {
      const int piece = i * Shape::threads + threadIdx.x;
      copy_async16(to + i * Shape::threads * 16, strip(piece / (Shape::quads * 32)) + at + piece % (Shape::quads * 32) * 16);
    }
    if (Shape::quantized && part == 0 && threadIdx.x < Shape::strips * kScalePieces) {
      const int inside = k_tile - (chunk << p_.chunk_shift);
      const size_t scales = size_t(chunk + 1) * p_.layout.code_bytes + chunk * p_.layout.scale_bytes + (inside * kTileInputs >> p_.flush_shift) * 64;
      copy_async16(to + Shape::scales_at - Shape::codes_at, strip(threadIdx.x / kScaleLanes) + scales + threadIdx.x % kScaleLanes * 16);
    }
  }

  __device__ void inputs(int slot, int k_tile, int part) const {
    const uint32_t to = to_ + slot * Shape::stage_bytes;
    const unsigned char* from = x_ + k_tile * p_.x_tile_bytes;
#pragma unroll
    for (int i = part * kInputs / kParts; i < (part + 1) * kInputs / kParts; ++i)
      copy_async16(to + i * Shape::threads * 16, from + i * Shape::threads * 16);
  }

 private:
  const WideParams& p_;
  uint32_t to_;
  const unsigned char* x_;
  int strip0_;
};

// The operands of a warp's next step.
template <class Shape>
class WideFragments {
 public:
  uint32_t a[Shape::warp_strips][4];
  uint32_t b[2][Shape::warp_columns][2];

  __device__ WideFragments(const unsigned char* shared, int warp_row, int warp_token)
      : codes_(shared + Shape::codes_at + warp_row * Shape::warp_strips * (Shape::quads * 512) + threadIdx.x % 32 * 16),
        scales_(shared + Shape::scales_at + warp_row * Shape::warp_strips * Shape::scale_bytes + threadIdx.x % 32 / 4 * 8) {
    const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, piece = lane / 8 % 2 ^ lane % 8;
    inputs_ = shared_address(shared) + warp_token * 64 * 128 + row * 128 + piece * 16;
  }

  __device__ void load_inputs(int offset, int step, uint32_t (&into)[Shape::warp_columns][2]) const {
    const uint32_t from = (inputs_ + offset) ^ (step * 32);
#pragma unroll
    for (int c = 0; c < Shape::warp_columns; c += 2)
      load_matrices(from + c * 1024, into[c][0], into[c][1], into[c + 1][0], into[c + 1][1]);
  }

  // Reads the codes that `step` is the first to need.
  __device__ void load_codes(int offset, int step) {
    if constexpr (Shape::precision == Precision::int4) {
      if (step == 0) read_codes(offset, 0);
    } else if constexpr (Shape::precision == Precision::int8) {
      if (step % 2 == 0) read_codes(offset, step / 2);
    }
    if constexpr (Shape::scale_bytes == 128) {
      if (step % 2 == 0) read_scales(offset + step / 2 * 64);
    } else if constexpr (Shape::scale_bytes == 64) {
      if (step == 0) read_scales(offset);
    }
  }

  // Makes the weights of one strip ready.
  __device__ void load_weights(int offset, int step, int strip) {
    if constexpr (Shape::quantized) {
      dequantize<Shape::precision>(code_[strip], step, RowScales(scale_[strip]), a[strip]);
    } else {
      const uint4 v = *reinterpret_cast<const uint4*>(codes_ + offset + (strip * 4 + step) * 512);
      a[strip][0] = v.x, a[strip][1] = v.y, a[strip][2] = v.z, a[strip][3] = v.w;
    }
  }

 private:
  __device__ void read_codes(int offset, int quad) {
#pragma unroll
    for (int s = 0; s < Shape::warp_strips; ++s)
      code_[s] = *reinterpret_cast<const uint4*>(codes_ + offset + (s * Shape::quads + quad) * 512);
  }
  __device__ void read_scales(int offset) {
#pragma unroll
    for (int s = 0; s < Shape::warp_strips; ++s)
      scale_[s] = *reinterpret_cast<const uint2*>(scales_ + offset + s * Shape::scale_bytes);
  }

  const unsigned char* codes_;
  const unsigned char* scales_;
  uint32_t inputs_;
  uint4 code_[Shape::warp_strips];
  uint2 scale_[Shape::warp_strips];
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks) wide_kernel(const __grid_constant__ WideParams p) {
  extern __shared__ __align__(1024) unsigned char wide_shared[];
  unsigned char* shared = wide_shared;
  const int warp = threadIdx.x / 32, warp_row = warp % Shape::row_warps, warp_token = warp / Shape::row_warps;
  const WideTile tile = WideTile::of(p, blockIdx.x);
  const int begin = tile.k_begin(p), end = tile.k_end(p);
  const WideLoader<Shape> loader(p, shared, tile);

  // Weights before the wait, inputs after it; but not weights that the kernel before wrote.
  if (p.weights_written) wait_for_previous_kernel();
  for (int i = 0; i < Shape::stages - 1 && begin + i < end; ++i)
    for (int part = 0; part < loader.kParts; ++part) loader.weights(i, begin + i, part);
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (int i = 0; i < Shape::stages - 1; ++i) {
    if (begin + i < end)
      for (int part = 0; part < loader.kParts; ++part) loader.inputs(i, begin + i, part);
    commit_copies();
  }

  float acc[Shape::warp_strips][Shape::warp_columns][4] = {};
  WideFragments<Shape> f(shared, warp_row, warp_token);
  int slot = 0, offset = 0, free_slot = Shape::stages - 1;
  wait_copies<Shape::stages - 2>();
  __syncthreads();
  f.load_inputs(0, 0, f.b[0]);
  f.load_codes(0, 0);
#pragma unroll
  for (int s = 0; s < Shape::warp_strips; ++s) f.load_weights(0, 0, s);

  for (int k_tile = begin; k_tile < end; ++k_tile) {
    const bool more = k_tile + Shape::stages - 1 < end;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      constexpr int kLast = 3;
      if (step < kLast) {
        if (more) {
          loader.inputs(free_slot, k_tile + Shape::stages - 1, step);
          loader.weights(free_slot, k_tile + Shape::stages - 1, step);
        }
      } else {
        commit_copies();
        wait_copies<Shape::stages - 2>();
        __syncthreads();
        free_slot = slot;
        slot = slot + 1 == Shape::stages ? 0 : slot + 1;
        offset = slot * Shape::stage_bytes;
      }
      // Past the last stage this reads what is not used.
      const int next = (step + 1) % 4;
      f.load_inputs(offset, next, f.b[next % 2]);
      f.load_codes(offset, next);
#pragma unroll
      for (int s = 0; s < Shape::warp_strips; ++s) {
#pragma unroll
        for (int c = 0; c < Shape::warp_columns; ++c) mma_16816(acc[s][c], f.a[s], f.b[step % 2][c][0], f.b[step % 2][c][1]);
        f.load_weights(offset, next, s);
      }
    }
  }
  if (threadIdx.x == 0) prefetch_share(p.next);
  if (p.splits > 1 && !sum_parts<Shape::threads>(p, blockIdx.x, acc)) return;
  const int strip0 = p.first_strip + tile.rows * Shape::strips + warp_row * Shape::warp_strips, token0 = tile.tokens * Shape::tokens + warp_token * 64;
  if (p.epilogue == Epilogue::add || p.epilogue == Epilogue::logits) return store_floats(p, strip0, token0, acc);
  wait_copies<0>();
  __syncthreads();
  store_halves(p, shared + warp * Shape::staging, strip0, token0, acc);
}

template <class Shape>
Status launch_wide(WideParams params, const Launch& on) {
  const Result<int> tiles = cut_product<Shape>(params, on.device.multiprocessors * Shape::blocks);
  if (!tiles.ok()) return tiles.status();
  ES_RETURN_IF_ERROR(allow_shared(wide_kernel<Shape>, Shape::shared));
  return launch(on, wide_kernel<Shape>, dim3(unsigned(tiles.value() * params.splits)), Shape::threads, Shape::shared, params);
}

}  // namespace edgeshift::cuda
