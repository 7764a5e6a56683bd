// What the products of many tokens share (wide_kernel.cuh, hopper_kernel.cuh): parameters, the order of the tiles, and how
// a warp writes its part of a finished tile.
#pragma once

#include "cuda/device.cuh"
#include "cuda/input_tiles.h"
#include "cuda/tiled_kernel.cuh"

namespace edgeshift::cuda {

// From this many tokens on the wide products are faster than the tiled ones, where a block may have this much shared memory.
inline constexpr int kWideTokens = 192;
inline constexpr size_t kWideSharedBytes = size_t(97) * 1024;
// From this many tokens on a quantized weight is turned into f16 once, before the product (docs/cuda.md).
inline constexpr int kWidenTokens = 768, kWidenTokensHopper = 896;
inline constexpr size_t kMostWidenedBytes = size_t(256) << 20;
inline constexpr int kWidestStrips = 16;  // of a block's tile, whichever kernel

struct WideParams {
  const unsigned char* weight;
  StripLayout layout;
  int n, t;
  const unsigned char* x;  // tiles of inputs (input_tiles.h)
  size_t x_tile_bytes;
  const float* bias;
  void* out;
  Epilogue epilogue;
  Activation activation;
  NextRead next;
  bool weights_written;  // by the kernel before
  int first_strip;  // the product is of strips [first_strip, layout.strips); weight is where strip 0 would be
  int chunk_shift;  // log2 of the tiles of 64 in a chunk
  int flush_shift;  // log2 of layout.flush
  int k_tiles;
  int row_tiles, token_tiles;
  int token_group;  // tiles of tokens that are walked together
  int splits;       // parts of k
  int* counters;    // [row_tiles * token_tiles], zero
  float* partials;  // [tile][split][sums of a thread][threads]
};

// A tile of the product, and its part of k.
struct WideTile {
  int rows, tokens, split;

  __device__ int k_begin(const WideParams& p) const { return split * p.k_tiles / p.splits; }
  __device__ int k_end(const WideParams& p) const { return (split + 1) * p.k_tiles / p.splits; }

  // Tiles in an order that keeps the activations of one group of tokens in L2 while the weights stream past.
  __device__ static WideTile of(const WideParams& p, int index) {
    WideTile tile;
    tile.split = index % p.splits;
    index /= p.splits;
    const int per_group = p.token_group * p.row_tiles, group = index / per_group, inside = index - group * per_group;
    const int width = min(p.token_group, p.token_tiles - group * p.token_group);
    tile.rows = inside / width;
    tile.tokens = group * p.token_group + inside - tile.rows * width;
    return tile;
  }
};

// Adds the parts of k that other blocks have finished to this one's, in their order: true in the block that comes last, which
// then holds the whole sums. Called by the first kThreads threads of a block.
template <int kThreads, int kStrips, int kColumns>
__device__ inline bool sum_parts(const WideParams& p, int index, float (&acc)[kStrips][kColumns][4]) {
  __shared__ bool last;
  constexpr int kSums = kStrips * kColumns * 4;
  auto barrier = [] { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); };
  const int tile = index / p.splits;
  auto part = [&](int split) { return p.partials + (size_t(tile) * p.splits + split) * kSums * kThreads + threadIdx.x; };
  float* flat = &acc[0][0][0];
  float* mine = part(index % p.splits);
#pragma unroll
  for (int i = 0; i < kSums; ++i) __stcg(mine + i * kThreads, flat[i]);
  __threadfence();
  barrier();
  if (threadIdx.x == 0) last = atomicAdd(p.counters + tile, 1) == p.splits - 1;
  barrier();
  if (!last) return false;
  __threadfence();
  if (threadIdx.x == 0) p.counters[tile] = 0;
#pragma unroll
  for (int i = 0; i < kSums; ++i) flat[i] = 0;
  for (int split = 0; split < p.splits; ++split) {
    const float* from = part(split);
#pragma unroll
    for (int i = 0; i < kSums; ++i) flat[i] += __ldcg(from + i * kThreads);
  }
  return true;
}

// How many parts of k fill the device with `tiles` tiles, `blocks` at a time: more than one only below one wave.
inline int choose_parts(int tiles, int blocks, int k_tiles) { return std::clamp(blocks / tiles, 1, std::max(1, k_tiles / 8)); }

// Cuts the product into tiles of Shape and parts of k for `blocks` blocks at a time; returns how many tiles. unsupported.
template <class Shape>
Result<int> cut_product(WideParams& params, int blocks) {
  params.row_tiles = (params.layout.strips - params.first_strip + Shape::strips - 1) / Shape::strips;
  params.token_tiles = (params.t + Shape::tokens - 1) / Shape::tokens;
  params.token_group = 2048 / Shape::tokens;
  const int tiles = params.row_tiles * params.token_tiles;
  if (tiles > kMatmulCounters) return Status{Code::unsupported, "cuda wide_matmul: too many tokens in one call"};
  params.splits = choose_parts(tiles, blocks, params.k_tiles);
  return tiles;
}

// Bytes of shared memory that a warp needs for store_part.
template <int kStrips, int kColumns>
constexpr int kStagingBytes = kColumns * 8 * (kStrips * 32 + 16);

// Writes f16 outputs of a warp's strips [strip0, + kStrips) and tokens [token0, + 8 * kColumns): through shared memory, so that
// a token's outputs go out in one run.
template <int kStrips, int kColumns>
__device__ inline void store_halves(const WideParams& p, unsigned char* staging, int strip0, int token0,
                                    const float (&acc)[kStrips][kColumns][4]) {
  constexpr int kStride = kStrips * 32 + 16;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const bool gate = p.epilogue == Epilogue::gate;
  const int columns = gate ? p.n / 2 : p.n, per_strip = gate ? 8 : 16;
  __syncwarp();
#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
    const int row = (strip0 + s) * kStripRows + g;
    const float upper = p.bias && row < p.n ? p.bias[row] : 0, lower = p.bias && row + 8 < p.n ? p.bias[row + 8] : 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float* v = acc[s][c];
      unsigned char* to = staging + (c * 8 + g) * kStride + s * per_strip * 2 + t * 4;
      if (gate) {
        float first = activate(p.activation, v[0] + upper) * (v[2] + lower), second = activate(p.activation, v[1] + upper) * (v[3] + lower);
        *reinterpret_cast<uint32_t*>(to) = transpose_8x8(pack_half2(first, second));
      } else {
        *reinterpret_cast<uint32_t*>(to) = transpose_8x8(pack_half2(v[0] + upper, v[1] + upper));
        *reinterpret_cast<uint32_t*>(to + 16) = transpose_8x8(pack_half2(v[2] + lower, v[3] + lower));
      }
    }
  }
  __syncwarp();
  const int pieces = kStrips * per_strip / 8;  // of 16 bytes per token: a power of two
  const int first = strip0 * per_strip;
  const bool aligned = columns % 8 == 0;
  for (int i = lane; i < kColumns * 8 * pieces; i += 32) {
    const int token = i / pieces, piece = i % pieces, column = first + piece * 8;
    if (token0 + token >= p.t || column >= columns) continue;
    const unsigned char* from = staging + token * kStride + piece * 16;
    half* to = static_cast<half*>(p.out) + size_t(token0 + token) * columns + column;
    if (aligned) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int j = 0; j < 8 && column + j < columns; ++j) to[j] = reinterpret_cast<const half*>(from)[j];
    }
  }
}

// Writes fp32 outputs, or adds to them. Eight lanes write a run of 32 bytes.
template <int kStrips, int kColumns>
__device__ inline void store_floats(const WideParams& p, int strip0, int token0, const float (&acc)[kStrips][kColumns][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
    const int row = (strip0 + s) * kStripRows + g;
    const float bias[2] = {p.bias && row < p.n ? p.bias[row] : 0, p.bias && row + 8 < p.n ? p.bias[row + 8] : 0};
    // All reads of a group before its first write: the compiler may not move them past it, and each would wait for memory alone.
    constexpr int kGroup = 8;
#pragma unroll
    for (int c0 = 0; c0 < kColumns; c0 += kGroup) {
      float old[kGroup][4] = {};
      auto each = [&](auto f) {
#pragma unroll
        for (int c = 0; c < kGroup; ++c)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int token = token0 + (c0 + c) * 8 + 2 * t + i % 2;
            if (token < p.t && row + i / 2 * 8 < p.n) f(static_cast<float*>(p.out) + size_t(token) * p.n + row + i / 2 * 8, c, i);
          }
      };
      if (p.epilogue == Epilogue::add) each([&](float* at, int c, int i) { old[c][i] = __ldcg(at); });
      each([&](float* at, int c, int i) { __stcg(at, acc[s][c0 + c][i] + bias[i / 2] + old[c][i]); });
    }
  }
}

Status wide_int4(const WideParams& params, const Launch& on);
Status wide_int8(const WideParams& params, const Launch& on);
Status wide_fp16(const WideParams& params, const Launch& on);
#ifdef EDGESHIFT_HOPPER
Status hopper_int4(const WideParams& params, const Launch& on);
Status hopper_int8(const WideParams& params, const Launch& on);
Status hopper_fp16(const WideParams& params, const Launch& on);
#endif

}  // namespace edgeshift::cuda
