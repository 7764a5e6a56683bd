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

#include "cuda/device.cuh"
#include "cuda/matmul.h"

namespace edgeshift::cuda {

inline constexpr int kTiledWarps = 8;
inline constexpr int kTiledThreads = 32 * kTiledWarps;
inline constexpr int kTiledStrips = 8;
inline constexpr int kTiledRows = kTiledStrips * kStripRows;
inline constexpr int kTiledMaxTokens = 128;
inline constexpr int kTiledCounters = 1 << 17;
inline constexpr int kTiledBlocksPerMultiprocessor = 2;

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
  int k_stages;       // per tile
  int token_tiles;
  long long stages;   // of all tiles
  int* counters;      // [tiles]
  float* partials;    // [blocks][2][accumulators][threads]
};

// Compile-time shape. kWarpRows warps share the rows, the others the tokens.
template <Precision kPrecision, bool kFlushSmall, int kTokens_, int kTiles_, int kWarpRows>
struct TiledShape {
  static constexpr Precision precision = kPrecision;
  static constexpr bool quantized = kPrecision != Precision::fp16;
  static constexpr int quads = kPrecision == Precision::int4 ? 1 : kPrecision == Precision::int8 ? 2 : 4;  // per tile of 64
  static constexpr int tokens = kTokens_, tiles = kTiles_;
  static constexpr int scales = quantized ? (kFlushSmall ? 2 : 1) : 0;  // scale rows per tile: group 32 needs two
  static constexpr int warp_rows = kWarpRows, warp_tokens = kTiledWarps / kWarpRows;
  static constexpr int warp_strips = kTiledStrips / kWarpRows, warp_columns = tokens / 8 / warp_tokens;
  static constexpr int accumulators = warp_strips * warp_columns * 4;
  static constexpr int tile_bytes = quads * 512 + scales * 64;  // one strip, one tile
  static constexpr int weight_bytes = kTiledStrips * tiles * tile_bytes;
  // Rows half a bank cycle apart: the 16-byte loads of two tokens then touch all banks once.
  static constexpr int x_stride = tiles * 128 + 64;
  static constexpr int stage_bytes = weight_bytes + tokens * x_stride;
  // As many stages, up to 4, as let two blocks share a multiprocessor of 227 KB; never fewer than 3.
  static constexpr int stages = 112 * 1024 / stage_bytes >= 4 ? 4 : 3;
  static constexpr size_t shared = size_t(stage_bytes) * stages;
  static constexpr int blocks_per_multiprocessor = shared <= 112 * 1024 ? 2 : 1;
  static_assert(warp_columns >= 1);
};

template <class Shape>
__device__ inline void load_weights(const TiledParams& p, unsigned char* stage, int strip0, int tile0) {
  const int per_chunk = p.layout.chunk / kTileInputs, k_tiles = per_chunk * p.layout.chunks;
  constexpr int kPieces = Shape::tile_bytes / 16;
  for (int i = threadIdx.x; i < kTiledStrips * Shape::tiles * kPieces; i += kTiledThreads) {
    int piece = i % kPieces, tile = i / kPieces % Shape::tiles, strip = i / kPieces / Shape::tiles;
    int at = tile0 + tile;
    bool valid = strip0 + strip < p.layout.strips && at < k_tiles;
    const unsigned char* chunk = p.weight + size_t(valid ? strip0 + strip : 0) * p.layout.strip_bytes() +
                                 size_t(valid ? at / per_chunk : 0) * p.layout.chunk_bytes();
    int inside = at % per_chunk;
    const unsigned char* from = piece < Shape::quads * 32
                                    ? chunk + inside * Shape::quads * 512 + piece * 16
                                    : chunk + p.layout.code_bytes + inside * kTileInputs / p.layout.flush * 64 +
                                          (piece - Shape::quads * 32) * 16;
    copy_async16_or_zero(shared_address(stage) + i * 16, from, valid);
  }
}

template <class Shape>
__device__ inline void load_activations(const TiledParams& p, unsigned char* stage, int token0, int tile0) {
  constexpr int kPieces = Shape::tiles * 8;
  for (int i = threadIdx.x; i < Shape::tokens * kPieces; i += kTiledThreads) {
    int piece = i % kPieces, token = token0 + i / kPieces, k = tile0 * kTileInputs + piece * 8;
    bool valid = token < p.t && k < p.k;
    const half* from = p.x + (valid ? size_t(token) * p.k + k : 0);
    copy_async16_or_zero(shared_address(stage) + Shape::weight_bytes + i / kPieces * Shape::x_stride + piece * 16, from, valid);
  }
}

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

// Adds a stage to this warp's accumulators [strip][column][4].
template <class Shape>
__device__ inline void multiply_stage(const unsigned char* stage, int warp_row, int warp_token,
                                      float (&acc)[Shape::warp_strips][Shape::warp_columns][4]) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const unsigned char* weights = stage + warp_row * Shape::warp_strips * Shape::tiles * Shape::tile_bytes;
  const unsigned char* x = stage + Shape::weight_bytes + (warp_token * Shape::warp_columns * 8 + g) * Shape::x_stride + t * 16;
#pragma unroll
  for (int tile = 0; tile < Shape::tiles; ++tile) {
#pragma unroll
    for (int half_tile = 0; half_tile < 2; ++half_tile) {
      uint4 b[Shape::warp_columns];
#pragma unroll
      for (int c = 0; c < Shape::warp_columns; ++c)
        b[c] = *reinterpret_cast<const uint4*>(x + c * 8 * Shape::x_stride + tile * 128 + half_tile * 64);
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
          uint32_t a[4];
          dequantize<Shape::precision>(codes, step, scales, a);
#pragma unroll
          for (int c = 0; c < Shape::warp_columns; ++c)
            mma_16816(acc[strip][c], a, i == 0 ? b[c].x : b[c].z, i == 0 ? b[c].y : b[c].w);
        }
      }
    }
  }
}

__device__ inline void store_value(const TiledParams& p, int token, int n, float y) {
  if (token >= p.t || n >= p.n) return;
  if (p.bias) y += p.bias[n];
  size_t at = size_t(token) * p.n + n;
  if (p.epilogue == Epilogue::store) static_cast<half*>(p.out)[at] = __float2half_rn(y);
  else if (p.epilogue == Epilogue::add) __stcg(static_cast<float*>(p.out) + at, __ldcg(static_cast<float*>(p.out) + at) + y);
  else static_cast<float*>(p.out)[at] = y;
}

// Writes a finished tile. Lane (g, t) holds rows g and g + 8 of tokens 2t, 2t + 1.
template <class Shape>
__device__ inline void store_tile(const TiledParams& p, int strip0, int token0,
                                  const float (&acc)[Shape::warp_strips][Shape::warp_columns][4]) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int s = 0; s < Shape::warp_strips; ++s)
#pragma unroll
    for (int c = 0; c < Shape::warp_columns; ++c)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int token = token0 + c * 8 + 2 * t + i, strip = strip0 + s;
        float upper = acc[s][c][i], lower = acc[s][c][i + 2];
        if (p.epilogue == Epilogue::gate) {
          float gate = p.activation == Activation::silu ? silu(upper) : gelu_tanh(upper);
          if (token < p.t && strip < p.layout.strips)
            static_cast<half*>(p.out)[size_t(token) * (p.n / 2) + strip * 8 + g] = __float2half_rn(gate * lower);
        } else {
          store_value(p, token, strip * kStripRows + g, upper);
          store_value(p, token, strip * kStripRows + g + 8, lower);
        }
      }
}

template <class Shape>
__global__ void __launch_bounds__(kTiledThreads, Shape::blocks_per_multiprocessor) tiled_kernel(const __grid_constant__ TiledParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ bool last;
  const int warp = threadIdx.x / 32, warp_row = warp % Shape::warp_rows, warp_token = warp / Shape::warp_rows;
  const long long blocks = gridDim.x;
  const auto begin_of = [&](long long block) { return block * p.stages / blocks; };
  const auto block_of = [&](long long stage) { return ((stage + 1) * blocks - 1) / p.stages; };
  const long long begin = begin_of(blockIdx.x), end = begin_of(blockIdx.x + 1);

  // The ring's writing end.
  long long fetch = begin;
  int fetch_tile = int(begin / p.k_stages), fetch_k = int(begin % p.k_stages), fetch_slot = 0;
  auto advance = [&] {
    ++fetch;
    fetch_slot = fetch_slot + 1 == Shape::stages ? 0 : fetch_slot + 1;
    if (++fetch_k == p.k_stages) {
      fetch_k = 0;
      ++fetch_tile;
    }
  };
  auto fetch_stage = [&](bool weights, bool activations) {
    if (fetch < end) {
      unsigned char* stage = shared + size_t(fetch_slot) * Shape::stage_bytes;
      if (weights) load_weights<Shape>(p, stage, fetch_tile / p.token_tiles * kTiledStrips, fetch_k * Shape::tiles);
      if (activations) load_activations<Shape>(p, stage, fetch_tile % p.token_tiles * Shape::tokens, fetch_k * Shape::tiles);
    }
  };
  // Weights before the wait, activations after it.
  for (int i = 0; i < Shape::stages - 1; ++i, advance()) fetch_stage(true, false);
  wait_for_previous_kernel();
  let_next_kernel_start();
  fetch = begin, fetch_tile = int(begin / p.k_stages), fetch_k = int(begin % p.k_stages), fetch_slot = 0;
  for (int i = 0; i < Shape::stages - 1; ++i, advance()) {
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
    for (; stage < segment_end; ++stage) {
      wait_copies<Shape::stages - 2>();
      __syncthreads();
      fetch_stage(true, true);
      advance();
      commit_copies();
      multiply_stage<Shape>(shared + size_t(slot) * Shape::stage_bytes, warp_row, warp_token, acc);
      slot = slot + 1 == Shape::stages ? 0 : slot + 1;
    }
    if (stage == end && threadIdx.x == 0) prefetch_share(p.next);
    bool store = whole;
    if (!whole) {
      float* flat = &acc[0][0][0];
      auto slot_of = [&](long long block, int which) {
        return p.partials + (block * 2 + which) * size_t(Shape::accumulators) * kTiledThreads + threadIdx.x;
      };
      float* mine = slot_of(blockIdx.x, first_segment ? 0 : 1);
#pragma unroll
      for (int i = 0; i < Shape::accumulators; ++i) __stcg(mine + i * kTiledThreads, flat[i]);
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
        for (long long block = from; block <= to; ++block) {
          const float* part = slot_of(block, begin_of(block) >= tile_begin ? 0 : 1);
#pragma unroll
          for (int i = 0; i < Shape::accumulators; ++i) flat[i] += __ldcg(part + i * kTiledThreads);
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
  params.token_tiles = (params.t + Shape::tokens - 1) / Shape::tokens;
  long long tiles = (long long)((params.layout.strips + kTiledStrips - 1) / kTiledStrips) * params.token_tiles;
  if (tiles > kTiledCounters) return {Code::unsupported, "cuda tiled_matmul: too many tokens in one call"};
  params.stages = tiles * params.k_stages;
  ES_RETURN_IF_ERROR(allow_shared(tiled_kernel<Shape>, Shape::shared));
  long long blocks = std::min<long long>(params.stages, Shape::blocks_per_multiprocessor * on.device.multiprocessors);
  return launch(on, tiled_kernel<Shape>, dim3(unsigned(blocks)), kTiledThreads, Shape::shared, params);
}

// Picks the token tile. kSmall: groups of 32.
template <Precision kPrecision, bool kSmall>
Status launch_tiled_tokens(const TiledParams& params, const Launch& on) {
  constexpr int kWide = kPrecision == Precision::int4 ? 4 : kPrecision == Precision::int8 ? 2 : 1;
  constexpr int kMiddle = kWide > 2 ? 2 : kWide;
  if (params.t <= 8) return launch_tiled<TiledShape<kPrecision, kSmall, 8, kWide, 8>>(params, on);
  if (params.t <= 16) return launch_tiled<TiledShape<kPrecision, kSmall, 16, kWide, 8>>(params, on);
  if (params.t <= 32) return launch_tiled<TiledShape<kPrecision, kSmall, 32, kMiddle, 4>>(params, on);
  if (params.t <= 64) return launch_tiled<TiledShape<kPrecision, kSmall, 64, kMiddle, 4>>(params, on);
  return launch_tiled<TiledShape<kPrecision, kSmall, 128, 1, 4>>(params, on);
}

Status tiled_int4(const TiledParams& params, const Launch& on);
Status tiled_int8(const TiledParams& params, const Launch& on);
Status tiled_fp16(const TiledParams& params, const Launch& on);

}  // namespace edgeshift::cuda
