// The tiled matrix product for more tokens than gemv takes; instantiated per precision in tiled_{int4,int8,fp16}.cu.
//
// A block computes tiles of 128 rows (8 strips) x kTokens tokens with 8 warps. Stages of kTiles x 64 inputs (codes and
// scales of 8 strips, activations of the tokens) travel through a ring in shared memory with cp.async; fragments come out
// of it with 16-byte loads only, because the strip layout already is fragment order and the activations are read in its
// input order. Codes become f16 weights in registers (lop3 / prmt, one add, one fma per pair), then mma.m16n8k16.
//
// Work is cut as stream-K (Osama et al. 2023): all stages of all tiles in one line, an equal share for each block, so no
// shape leaves multiprocessors idle. A tile that several blocks share is summed in block order by the last of them to
// arrive, so the result does not depend on timing.
#pragma once

#include <algorithm>
#include <bit>

#include "cuda/device.cuh"
#include "cuda/matmul.h"

namespace edgeshift::cuda {

inline constexpr int kTiledStrips = 8;
inline constexpr int kTiledRows = kTiledStrips * kStripRows;
inline constexpr int kTiledMaxTokens = 256;

// Shared memory of a multiprocessor that a shape is made for: of sm_90 and 100, and of all others (sm_86, 89 and 120 give a
// block 99 KB).
inline constexpr int kLargeRoom = 224 * 1024, kSmallRoom = 98 * 1024;

struct TiledParams {
  const unsigned char* weight;
  StripLayout layout;
  int n, k, t;
  const half* x;
  const float* bias;
  void* out;
  Epilogue epilogue;
  Activation activation;
  NextRead next;
  int chunk_shift;    // log2 of the tiles of 64 in a chunk
  int flush_shift;    // log2 of layout.flush
  int k_stages;       // per tile
  int token_tiles;
  long long stages;   // of all tiles
  int* counters;      // [tiles]
  float* partials;    // [blocks][2][accumulators][threads]
};

// How the activations of a stage lie in shared memory, so that the 16-byte loads of two neighbouring tokens touch all banks
// once: rows half a bank cycle apart, or without gaps and the halves of each 128 bytes swapped in odd rows. Swapped is
// smaller; which is faster was measured per shape.
enum class XRows { padded, swapped };

// Compile-time shape. kWarpRows warps share the rows, the others the tokens.
template <Precision kPrecision, bool kFlushSmall, int kRoom, int kTokens_, int kTiles_, int kWarps, int kWarpRows,
          XRows kRowForm = XRows::padded, int kMostStages = 4>
struct TiledShape {
  static constexpr Precision precision = kPrecision;
  static constexpr bool quantized = kPrecision != Precision::fp16;
  static constexpr int quads = kPrecision == Precision::int4 ? 1 : kPrecision == Precision::int8 ? 2 : 4;  // per tile of 64
  static constexpr int tokens = kTokens_, tiles = kTiles_;
  static constexpr int scales = quantized ? (kFlushSmall ? 2 : 1) : 0;  // scale rows per tile: group 32 needs two
  static constexpr int threads = 32 * kWarps;
  static constexpr int warp_rows = kWarpRows, warp_tokens = kWarps / kWarpRows;
  static constexpr int warp_strips = kTiledStrips / kWarpRows, warp_columns = tokens / 8 / warp_tokens;
  static constexpr int accumulators = warp_strips * warp_columns * 4;
  static constexpr int parts_together = std::clamp(64 / accumulators, 1, 4);  // parts of a tile that are read at a time
  static constexpr int tile_bytes = quads * 512 + scales * 64;  // one strip, one tile
  static constexpr int weight_bytes = kTiledStrips * tiles * tile_bytes;
  static constexpr int swap = kRowForm == XRows::swapped;
  static constexpr int x_stride = tiles * 128 + (swap ? 0 : 64);
  static constexpr int stage_bytes = weight_bytes + tokens * x_stride;
  // Small tiles run two blocks per multiprocessor; large ones need its registers. At least 3 stages in its memory.
  static constexpr int blocks_per_multiprocessor = stage_bytes * 3 <= kRoom / 2 && kWarps == 8 && tokens <= 128 ? 2 : 1;
  static constexpr int room = kRoom / blocks_per_multiprocessor;
  static constexpr int stages = std::clamp(room / stage_bytes, 3, kMostStages);
  static constexpr size_t shared = size_t(stage_bytes) * stages;
  // Fewest stages of a block's share: a shorter one spends its time filling the ring and summing parts.
  static constexpr int least_share = !quantized ? 6 : tokens <= 16 ? 3 : 4;
  static_assert(shared <= room);
  static_assert(warp_columns >= 1);
};

// One thread's part in loading stages of one tile: addresses are worked out once per tile, a stage then costs a few
// instructions per copy. Warp w loads strip w; activations are cut into 16-byte pieces in order of threads.
template <class Shape>
class StageLoader {
 public:
  static constexpr int kPieces = Shape::tiles * 8, kRows = Shape::threads / kPieces;
  static constexpr int kPasses = (Shape::tokens + kRows - 1) / kRows;

  __device__ StageLoader(const TiledParams& p, unsigned char* shared)
      : p_(p), shared_(shared_address(shared)), k_tiles_(p.layout.chunks << p.chunk_shift) {}

  // Points at a tile of the product. Strips and tokens past the end repeat the last one: nothing of them is stored.
  __device__ void select(int tile) {
    int strip = min(tile / p_.token_tiles * kTiledStrips + int(threadIdx.x) / 32 % kTiledStrips, p_.layout.strips - 1);
    weight_ = p_.weight + strip * p_.layout.strip_bytes() + threadIdx.x % 32 * 16;
    int token = tile % p_.token_tiles * Shape::tokens + threadIdx.x / kPieces;
#pragma unroll
    for (int i = 0; i < kPasses; ++i)
      rows_[i] = uint32_t(min(token + i * kRows, p_.t - 1)) * uint32_t(p_.k / 8) + threadIdx.x % kPieces;
  }

  __device__ void load_weights(int slot, int stage) const {
    if (Shape::threads > 32 * kTiledStrips && threadIdx.x >= 32 * kTiledStrips) return;
    const int lane = threadIdx.x % 32;
    uint32_t to = shared_ + slot * Shape::stage_bytes + threadIdx.x / 32 * (Shape::tiles * Shape::tile_bytes) + lane * 16;
#pragma unroll
    for (int i = 0; i < Shape::tiles; ++i) {
      int tile = stage * Shape::tiles + i, chunk = tile >> p_.chunk_shift;
      bool valid = Shape::tiles == 1 || tile < k_tiles_;
      const unsigned char* codes = weight_ + (valid ? tile * (Shape::quads * 512) + chunk * p_.layout.scale_bytes : 0);
#pragma unroll
      for (int q = 0; q < Shape::quads; ++q)
        copy_async16_or_zero(to + i * Shape::tile_bytes + q * 512, codes + q * 512, valid);
      if (Shape::scales > 0 && lane < Shape::scales * 4) {
        int inside = tile - (chunk << p_.chunk_shift);
        const unsigned char* scales = weight_ + (valid ? (chunk + 1) * p_.layout.code_bytes + chunk * p_.layout.scale_bytes +
                                                             (inside * kTileInputs >> p_.flush_shift) * 64
                                                       : 0);
        copy_async16_or_zero(to + i * Shape::tile_bytes + Shape::quads * 512, scales, valid);
      }
    }
  }

  // Pieces [from_pass, to_pass) of this thread's part.
  __device__ void load_activations(int slot, int stage, int from_pass = 0, int to_pass = kPasses) const {
    static_assert(!Shape::swap || kRows % 2 == 0);  // all of this thread's rows swap halves, or none
    const int piece = threadIdx.x % kPieces, row = threadIdx.x / kPieces;
    uint32_t to = shared_ + slot * Shape::stage_bytes + Shape::weight_bytes + row * Shape::x_stride + (piece ^ row % 2 * 4 * Shape::swap) * 16;
    const int k = stage * (Shape::tiles * kTileInputs);
    const uint4* from = reinterpret_cast<const uint4*>(p_.x + k);
    const bool whole = k + Shape::tiles * kTileInputs <= p_.k;
    const bool valid = whole || k + piece * 8 < p_.k;
#pragma unroll
    for (int i = from_pass; i < to_pass; ++i) {
      if (Shape::tokens % kRows != 0 && row + i * kRows >= Shape::tokens) break;
      if (whole) copy_async16(to + i * kRows * Shape::x_stride, from + rows_[i]);
      else copy_async16_or_zero(to + i * kRows * Shape::x_stride, valid ? from + rows_[i] : reinterpret_cast<const uint4*>(p_.x), valid);
    }
  }

 private:
  const TiledParams& p_;
  uint32_t shared_;
  int k_tiles_;
  const unsigned char* weight_ = nullptr;
  uint32_t rows_[kPasses];  // this thread's pieces of the tile's activation rows, in units of 16 bytes
};

// Scale and minimum of rows g and g + 8, each twice.
struct RowScales {
  half2 scale[2], minimum[2];
  __device__ explicit RowScales(uint2 v) {
    scale[0] = as_half2(__byte_perm(v.x, 0, 0x1010));
    minimum[0] = as_half2(__byte_perm(v.x, 0, 0x3232));
    scale[1] = as_half2(__byte_perm(v.y, 0, 0x1010));
    minimum[1] = as_half2(__byte_perm(v.y, 0, 0x3232));
  }
};

// A fragment of one step as f16 weights.
template <Precision kPrecision>
__device__ inline void dequantize(const uint4& codes, int step, const RowScales& s, uint32_t (&a)[4]) {
  if constexpr (kPrecision == Precision::int4) {
    expand_int4(step == 0 ? codes.x : step == 1 ? codes.y : step == 2 ? codes.z : codes.w, a);
    const half2 offset = __float2half2_rn(-1024), sixteenth = __float2half2_rn(1.0f / 16), high = __float2half2_rn(-64);
    a[0] = as_bits(__hfma2(__hadd2(as_half2(a[0]), offset), s.scale[0], s.minimum[0]));
    a[1] = as_bits(__hfma2(__hadd2(as_half2(a[1]), offset), s.scale[1], s.minimum[1]));
    a[2] = as_bits(__hfma2(__hfma2(as_half2(a[2]), sixteenth, high), s.scale[0], s.minimum[0]));
    a[3] = as_bits(__hfma2(__hfma2(as_half2(a[3]), sixteenth, high), s.scale[1], s.minimum[1]));
  } else if constexpr (kPrecision == Precision::int8) {
    if (step % 2 == 0) expand_int8(codes.x, codes.y, a);
    else expand_int8(codes.z, codes.w, a);
    const half2 offset = __float2half2_rn(-kInt8Offset);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[i] = as_bits(__hfma2(__hadd2(as_half2(a[i]), offset), s.scale[i % 2], s.minimum[i % 2]));
  } else {
    a[0] = codes.x, a[1] = codes.y, a[2] = codes.z, a[3] = codes.w;
  }
}

// Points inside a stage's products at which the next copies are issued, so that they wait behind arithmetic.
template <class Shape>
constexpr int kCopyPoints = Shape::tiles * 2 * ((Shape::warp_columns + 3) / 4);

// Adds a stage to this warp's accumulators [strip][column][4]; calls copy(0) .. copy(kCopyPoints - 1) along the way.
template <class Shape, class Copy>
__device__ inline void multiply_stage(const unsigned char* stage, int warp_row, int warp_token,
                                      float (&acc)[Shape::warp_strips][Shape::warp_columns][4], Copy copy) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const unsigned char* weights = stage + warp_row * Shape::warp_strips * Shape::tiles * Shape::tile_bytes;
  const unsigned char* x = stage + Shape::weight_bytes + (warp_token * Shape::warp_columns * 8 + g) * Shape::x_stride + t * 16;
  const unsigned char* halves[2] = {x + (g % 2 & Shape::swap) * 64, x + (1 - (g % 2 & Shape::swap)) * 64};
#pragma unroll
  for (int tile = 0; tile < Shape::tiles; ++tile) {
#pragma unroll
    for (int half_tile = 0; half_tile < 2; ++half_tile) {
      uint32_t a[Shape::warp_strips][2][4];
#pragma unroll
      for (int strip = 0; strip < Shape::warp_strips; ++strip) {
        const unsigned char* from = weights + (strip * Shape::tiles + tile) * Shape::tile_bytes;
        uint2 scale_bits = {0, 0};
        if constexpr (Shape::quantized)
          scale_bits = *reinterpret_cast<const uint2*>(from + Shape::quads * 512 + (Shape::scales == 2 ? half_tile * 64 : 0) + g * 8);
        RowScales scales(scale_bits);
        uint4 codes;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          int step = half_tile * 2 + i;
          if (Shape::quads == 4 || i == 0)
            codes = *reinterpret_cast<const uint4*>(from + step * Shape::quads / 4 * 512 + lane * 16);
          dequantize<Shape::precision>(codes, step, scales, a[strip][i]);
        }
      }
      // Groups of columns, so that two products into the same accumulators stand far apart.
      constexpr int kGroup = Shape::warp_columns < 4 ? Shape::warp_columns : 4;
#pragma unroll
      for (int c0 = 0; c0 < Shape::warp_columns; c0 += kGroup) {
        uint4 b[kGroup];
#pragma unroll
        for (int c = 0; c < kGroup; ++c)
          b[c] = *reinterpret_cast<const uint4*>(halves[half_tile] + (c0 + c) * 8 * Shape::x_stride + tile * 128);
#pragma unroll
        for (int c = 0; c < kGroup; ++c)
#pragma unroll
          for (int strip = 0; strip < Shape::warp_strips; ++strip) mma_16816(acc[strip][c0 + c], a[strip][0], b[c].x, b[c].y);
#pragma unroll
        for (int c = 0; c < kGroup; ++c)
#pragma unroll
          for (int strip = 0; strip < Shape::warp_strips; ++strip) mma_16816(acc[strip][c0 + c], a[strip][1], b[c].z, b[c].w);
        copy((tile * 2 + half_tile) * ((Shape::warp_columns + 3) / 4) + c0 / 4);
      }
    }
  }
}

__device__ inline void store_value(const TiledParams& p, int token, int n, float y) {
  if (token >= p.t || n >= p.n) return;
  if (p.bias) y += p.bias[n];
  size_t at = size_t(token) * p.n + n;
  if (p.epilogue == Epilogue::store) static_cast<half*>(p.out)[at] = to_half(y);
  else __stcg(static_cast<float*>(p.out) + at, y);
}

// Two neighbouring outputs of one token, given as lane (g, t)'s values of row g, tokens 2t and 2t + 1: transposed so that
// a lane writes 4 bytes and four lanes a run of 16. Tokens and columns (of `columns`, even) are bounds.
__device__ inline void store_transposed(half* out, int tokens, int columns, int token, int column, float first, float second) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  uint32_t bits = transpose_8x8(pack_half2(first, second));
  if (token + g < tokens && column + 2 * t < columns)
    *reinterpret_cast<uint32_t*>(out + size_t(token + g) * columns + column + 2 * t) = bits;
}

// Writes a finished tile. Lane (g, t) holds rows g and g + 8 of tokens 2t, 2t + 1.
template <class Shape>
__device__ inline void store_tile(const TiledParams& p, int strip0, int token0,
                                  const float (&acc)[Shape::warp_strips][Shape::warp_columns][4]) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  half* out = static_cast<half*>(p.out);
#pragma unroll
  for (int s = 0; s < Shape::warp_strips; ++s) {
    int strip = strip0 + s, n = strip * kStripRows;
    if (p.epilogue == Epilogue::gate) {
      float gate_bias = p.bias && n + g < p.n ? p.bias[n + g] : 0, up_bias = p.bias && n + g + 8 < p.n ? p.bias[n + g + 8] : 0;
      auto gated = [&](float gate, float up) {
        gate += gate_bias, up += up_bias;
        return activate(p.activation, gate) * up;
      };
#pragma unroll
      for (int c = 0; c < Shape::warp_columns; ++c) {
        const float* v = acc[s][c];
        store_transposed(out, p.t, p.n / 2, token0 + c * 8, strip * 8, gated(v[0], v[2]), gated(v[1], v[3]));
      }
    } else if (p.epilogue == Epilogue::store && p.n % 2 == 0) {
      float upper = p.bias && n + g < p.n ? p.bias[n + g] : 0, lower = p.bias && n + g + 8 < p.n ? p.bias[n + g + 8] : 0;
#pragma unroll
      for (int c = 0; c < Shape::warp_columns; ++c) {
        const float* v = acc[s][c];
        store_transposed(out, p.t, p.n, token0 + c * 8, n, v[0] + upper, v[1] + upper);
        store_transposed(out, p.t, p.n, token0 + c * 8, n + 8, v[2] + lower, v[3] + lower);
      }
    } else {
      float old[Shape::warp_columns][4] = {};
      // All reads before the first write: the compiler may not move them past it, and each would wait for memory alone.
      if (p.epilogue == Epilogue::add)
#pragma unroll
        for (int c = 0; c < Shape::warp_columns; ++c)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            int token = token0 + c * 8 + 2 * t + i % 2, row = n + g + i / 2 * 8;
            if (token < p.t && row < p.n) old[c][i] = __ldcg(static_cast<const float*>(p.out) + size_t(token) * p.n + row);
          }
#pragma unroll
      for (int c = 0; c < Shape::warp_columns; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          store_value(p, token0 + c * 8 + 2 * t + i % 2, n + g + i / 2 * 8, acc[s][c][i] + old[c][i]);
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks_per_multiprocessor) tiled_kernel(const __grid_constant__ TiledParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ bool last;
  const int warp = threadIdx.x / 32, warp_row = warp % Shape::warp_rows, warp_token = warp / Shape::warp_rows;
  const long long blocks = gridDim.x;
  const auto begin_of = [&](long long block) { return block * p.stages / blocks; };
  const auto block_of = [&](long long stage) { return ((stage + 1) * blocks - 1) / p.stages; };
  const long long begin = begin_of(blockIdx.x), end = begin_of(blockIdx.x + 1);

  // The ring's writing end.
  StageLoader<Shape> loader(p, shared);
  int fetch_left, fetch_tile, fetch_k, fetch_slot;
  auto rewind = [&] {
    fetch_left = int(end - begin);
    fetch_tile = int(begin / p.k_stages);
    fetch_k = int(begin - (long long)(fetch_tile) * p.k_stages);
    fetch_slot = 0;
    loader.select(fetch_tile);
  };
  auto fetch_stage = [&](bool weights, bool activations) {
    if (fetch_left > 0) {
      if (weights) loader.load_weights(fetch_slot, fetch_k);
      if (activations) loader.load_activations(fetch_slot, fetch_k);
      --fetch_left;
      if (++fetch_k == p.k_stages) {
        fetch_k = 0;
        loader.select(++fetch_tile);
      }
    }
    fetch_slot = fetch_slot + 1 == Shape::stages ? 0 : fetch_slot + 1;
  };
  // Weights before the wait, activations after it.
  rewind();
  for (int i = 0; i < Shape::stages - 1; ++i) fetch_stage(true, false);
  wait_for_previous_kernel();
  let_next_kernel_start();
  rewind();
  for (int i = 0; i < Shape::stages - 1; ++i) {
    fetch_stage(false, true);
    commit_copies();
  }

  int slot = 0;
  for (long long stage = begin; stage < end;) {
    const int tile = int(stage / p.k_stages);
    const long long tile_begin = (long long)(tile) * p.k_stages, tile_end = tile_begin + p.k_stages;
    const long long segment_end = min(tile_end, end);
    const bool first_segment = stage == begin, whole = stage == tile_begin && segment_end == tile_end;
    float acc[Shape::warp_strips][Shape::warp_columns][4] = {};
    for (int left = int(segment_end - stage); left > 0; --left) {
      wait_copies<Shape::stages - 2>();
      __syncthreads();
      if (fetch_left > 0) loader.load_weights(fetch_slot, fetch_k);
      multiply_stage<Shape>(shared + size_t(slot) * Shape::stage_bytes, warp_row, warp_token, acc, [&](int point) {
        constexpr int kPoints = kCopyPoints<Shape>, kPasses = StageLoader<Shape>::kPasses;
        if (fetch_left > 0)
          loader.load_activations(fetch_slot, fetch_k, point * kPasses / kPoints, (point + 1) * kPasses / kPoints);
      });
      fetch_stage(false, false);
      commit_copies();
      slot = slot + 1 == Shape::stages ? 0 : slot + 1;
    }
    stage = segment_end;
    if (stage == end && threadIdx.x == 0) prefetch_share(p.next);
    bool store = whole;
    if (!whole) {
      float* flat = &acc[0][0][0];
      auto slot_of = [&](long long block, int which) {
        return p.partials + (block * 2 + which) * size_t(Shape::accumulators) * Shape::threads + threadIdx.x;
      };
      float* mine = slot_of(blockIdx.x, first_segment ? 0 : 1);
#pragma unroll
      for (int i = 0; i < Shape::accumulators; ++i) __stcg(mine + i * Shape::threads, flat[i]);
      __threadfence();
      __syncthreads();
      const long long from = block_of(tile_begin), to = block_of(tile_end - 1);
      if (threadIdx.x == 0) last = atomicAdd(p.counters + tile, 1) == int(to - from);
      __syncthreads();
      if (last) {
        __threadfence();
        if (threadIdx.x == 0) p.counters[tile] = 0;
#pragma unroll
        for (int i = 0; i < Shape::accumulators; ++i) flat[i] = 0;
        // Several parts travel at a time; they are added in the order of their blocks.
        constexpr int kTogether = Shape::parts_together;
        for (long long block = from; block <= to; block += kTogether) {
          float parts[kTogether][Shape::accumulators];
#pragma unroll
          for (int j = 0; j < kTogether; ++j) {
            const float* part = slot_of(block + j, begin_of(block + j) >= tile_begin ? 0 : 1);
#pragma unroll
            for (int i = 0; i < Shape::accumulators; ++i) parts[j][i] = block + j <= to ? __ldcg(part + i * Shape::threads) : 0;
          }
#pragma unroll
          for (int j = 0; j < kTogether; ++j)
#pragma unroll
            for (int i = 0; i < Shape::accumulators; ++i) flat[i] += parts[j][i];
        }
        store = true;
      }
    }
    if (store)
      store_tile<Shape>(p, tile / p.token_tiles * kTiledStrips + warp_row * Shape::warp_strips,
                        tile % p.token_tiles * Shape::tokens + warp_token * Shape::warp_columns * 8, acc);
  }
}

template <class Shape>
Status launch_tiled(TiledParams params, const Launch& on) {
  int k_tiles = params.layout.chunk / kTileInputs * params.layout.chunks;
  params.k_stages = (k_tiles + Shape::tiles - 1) / Shape::tiles;
  params.chunk_shift = std::bit_width(unsigned(params.layout.chunk / kTileInputs)) - 1;
  params.flush_shift = std::bit_width(unsigned(params.layout.flush)) - 1;
  params.token_tiles = (params.t + Shape::tokens - 1) / Shape::tokens;
  long long tiles = (long long)((params.layout.strips + kTiledStrips - 1) / kTiledStrips) * params.token_tiles;
  if (tiles > kMatmulCounters) return {Code::unsupported, "cuda tiled_matmul: too many tokens in one call"};
  params.stages = tiles * params.k_stages;
  ES_RETURN_IF_ERROR(allow_shared(tiled_kernel<Shape>, Shape::shared));
  long long full = Shape::blocks_per_multiprocessor * on.device.multiprocessors;
  long long blocks = std::min(params.stages, std::clamp(params.stages / Shape::least_share, full / Shape::blocks_per_multiprocessor, full));
  return launch(on, tiled_kernel<Shape>, dim3(unsigned(blocks)), Shape::threads, Shape::shared, params);
}

// Picks the token tile. kSmall: groups of 32.
template <Precision kPrecision, bool kSmall>
Status launch_tiled_large(const TiledParams& params, const Launch& on) {
  constexpr int kRoom = kLargeRoom;
  constexpr int kWide = kPrecision == Precision::int4 ? 4 : kPrecision == Precision::int8 ? 2 : 1;
  constexpr int kMiddle = kWide > 2 ? 2 : kWide, kNarrow = kWide > 2 ? 2 : 1;
  if (params.t <= 8) return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 8, kWide, 8, 8>>(params, on);
  constexpr XRows kRows16 = kPrecision == Precision::int4 ? XRows::swapped : XRows::padded;
  constexpr XRows kRows64 = kPrecision == Precision::fp16 ? XRows::swapped : XRows::padded;
  // Three stages where a fourth was slower: more shared memory keeps the next kernel's blocks off the multiprocessor.
  if (params.t <= 16)
    return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 16, kWide, 8, 8, kRows16, kPrecision == Precision::int4 ? 3 : 4>>(params, on);
  if (params.t <= 32) return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 32, kMiddle, 8, 4>>(params, on);
  if (params.t <= 64)
    return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 64, kNarrow, 8, 4, kRows64, kPrecision == Precision::fp16 ? 3 : 4>>(params, on);
  if (params.t <= 128) return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 128, 1, 8, 4>>(params, on);
  return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 256, 1, 8, 4>>(params, on);
}

// The same with 98 KB for the blocks of a multiprocessor.
template <Precision kPrecision, bool kSmall>
Status launch_tiled_small(const TiledParams& params, const Launch& on) {
  constexpr int kRoom = kSmallRoom;
  constexpr int kWide = kPrecision == Precision::int4 ? 2 : 1;
  constexpr XRows kSwapped = XRows::swapped;
  if (params.t <= 8) return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 8, kWide, 8, 8, kSwapped>>(params, on);
  if (params.t <= 16) return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 16, kWide, 8, 8, kSwapped>>(params, on);
  if (params.t <= 32) return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 32, 1, 8, 4, kSwapped>>(params, on);
  if (params.t <= 64) return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 64, 1, 8, 4, kSwapped>>(params, on);
  return launch_tiled<TiledShape<kPrecision, kSmall, kRoom, 128, 1, 8, 4, kSwapped>>(params, on);
}

template <Precision kPrecision, bool kSmall>
Status launch_tiled_tokens(const TiledParams& params, const Launch& on) {
  if (on.device.shared_bytes >= kLargeRoom) return launch_tiled_large<kPrecision, kSmall>(params, on);
  return launch_tiled_small<kPrecision, kSmall>(params, on);
}

Status tiled_int4(const TiledParams& params, const Launch& on);
Status tiled_int8(const TiledParams& params, const Launch& on);
Status tiled_fp16(const TiledParams& params, const Launch& on);

}  // namespace edgeshift::cuda
