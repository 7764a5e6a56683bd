// The matrix product of a decode batch for compute capability 9.0 (compiled for sm_90a): wgmma with the weights from registers.
//
// As in hopper_kernel.cuh a fragment of wgmma's A operand lies in a warp's registers as the strip layout has it, so that each
// code is turned into f16 once, and the tiled activations (input_tiles.h) are the B operand as they lie. A block computes tiles
// of 64 rows x kTokens tokens with one warpgroup; each warp keeps a ring of its own strip's weights in flight with cp.async,
// filled before the wait for the kernel before. One more warp copies the activations of the stages, a run of bytes each.
// (Bulk copies of weights were slower: one copy of 64 to 512 bytes takes as long to start as one of 8 KB.)
//
// A tile goes to as many blocks as fill the device, each with a part of k; where there are more tiles than blocks at a time
// all stages of all tiles stand in one line and each block takes an equal share, as in tiled_kernel.cuh. Parts are summed in
// block order by the last block to arrive.
#pragma once

#include <bit>

#include "cuda/hopper.cuh"
#include "cuda/input_tiles.h"
#include "cuda/stream.h"
#include "cuda/tiled_kernel.cuh"

namespace edgeshift::cuda {

#define ES_ROW(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
__device__ inline void warpgroup_product(float (&d)[2][4], const uint32_t (&a)[4], uint64_t b, int keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, keep, 1, 1, 0;\n"
      "}\n"
      : ES_ROW(0), ES_ROW(1)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}
__device__ inline void warpgroup_product(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, int keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, keep, 1, 1, 0;\n"
      "}\n"
      : ES_ROW(0), ES_ROW(1), ES_ROW(2), ES_ROW(3), ES_ROW(4), ES_ROW(5), ES_ROW(6), ES_ROW(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}
#undef ES_ROW

template <Precision kPrecision, bool kFlushSmall, int kTokens>
struct StreamShape {
  static constexpr Precision precision = kPrecision;
  static constexpr bool quantized = kPrecision != Precision::fp16;
  static constexpr int quads = kPrecision == Precision::int4 ? 1 : kPrecision == Precision::int8 ? 2 : 4;  // per tile of 64
  static constexpr int scale_bytes = quantized ? (kFlushSmall ? 128 : 64) : 0;                             // per strip and tile
  static constexpr int consumers = 4, threads = 32 * consumers + 32;  // warps; the last one copies activations
  static constexpr int warp_strips = 1, strips = consumers * warp_strips;
  static constexpr int tokens = kTokens, warp_columns = kTokens / 8, accumulators = warp_strips * warp_columns * 4;
  static constexpr int parts_together = accumulators <= 16 ? 4 : 2;  // parts of a tile that are read at a time
  static constexpr int x_bytes = tokens * 128, slot_bytes = quads * 512 + scale_bytes;
  static constexpr int ring_bytes = kPrecision == Precision::fp16 ? 32768 : kPrecision == Precision::int8 ? 23040 : 20480;  // of weights
  static constexpr int slots = ring_bytes / (strips * slot_bytes), warp_ring = slots * warp_strips * slot_bytes;
  static constexpr int blocks_per_multiprocessor = 3;
  static constexpr int room = 227 * 1024 / blocks_per_multiprocessor - 2048 - consumers * warp_ring;  // less what the kernel declares
  static constexpr int stages = std::min(12, room / x_bytes);  // of activations
  static constexpr int least_share = 6;  // stages of a block
  static constexpr size_t shared = size_t(stages) * x_bytes + consumers * warp_ring;
  static_assert(stages >= 3 && slots >= 3);
};

// A walk over the stages of a block's share.
struct StreamPlace {
  int left, tile, k;
  __device__ StreamPlace(const TiledParams& p, long long begin, long long end)
      : left(int(end - begin)), tile(int(begin / p.k_stages)), k(int(begin - (long long)(tile) * p.k_stages)) {}
  // Whether a new tile begins.
  __device__ bool next(const TiledParams& p) {
    --left;
    if (++k < p.k_stages) return false;
    k = 0, ++tile;
    return true;
  }
};

// The copying lane: the activations of the stages.
template <class Shape>
__device__ inline void fill_stream(const StreamParams& s, StreamPlace place, uint32_t data, uint32_t full, uint32_t empty) {
  const TiledParams& p = s.product;
  uint32_t phase = 1;
  for (int slot = 0; place.left > 0; place.next(p)) {
    wait_barrier(empty + slot * 8, phase);
    arrive_expecting(full + slot * 8, Shape::x_bytes);
    const unsigned char* from = reinterpret_cast<const unsigned char*>(p.x) + place.k * s.x_tile_bytes + size_t(place.tile % p.token_tiles) * Shape::x_bytes;
    copy_bulk(data + slot * Shape::x_bytes, from, Shape::x_bytes, full + slot * 8);
    if (++slot == Shape::stages) slot = 0, phase ^= 1;
  }
}

// A warp's ring of the weights of its strip: one slot per stage, the warp's own copies.
template <class Shape>
class StripRing {
 public:
  __device__ StripRing(const TiledParams& p, StreamPlace place, unsigned char* ring)
      : p_(p), place_(place), ring_(ring + threadIdx.x % 32 * 16), write_(shared_address(ring_)) {
    select();
    for (int i = 0; i < Shape::slots; ++i) fetch(i);
  }

  // Codes and scales of the next stage; its slot is free afterwards and is filled again.
  __device__ void take(uint4 (&codes)[Shape::warp_strips][Shape::quads], uint2 (&scales)[Shape::warp_strips][2]) {
    wait_copies<Shape::slots - 1>();
    __syncwarp();
#pragma unroll
    for (int s = 0; s < Shape::warp_strips; ++s) {
      const unsigned char* from = ring_ + (slot_ * Shape::warp_strips + s) * Shape::slot_bytes;
#pragma unroll
      for (int q = 0; q < Shape::quads; ++q) codes[s][q] = *reinterpret_cast<const uint4*>(from + q * 512);
      if constexpr (Shape::quantized) {
        const int lane = threadIdx.x % 32;
        from += Shape::quads * 512 - lane * 16 + lane / 4 * 8;
        scales[s][0] = scales[s][1] = *reinterpret_cast<const uint2*>(from);
        if constexpr (Shape::scale_bytes == 128) scales[s][1] = *reinterpret_cast<const uint2*>(from + 64);
      }
    }
    __syncwarp();
    fetch(slot_);
    slot_ = slot_ + 1 == Shape::slots ? 0 : slot_ + 1;
  }

 private:
  __device__ void select() {
#pragma unroll
    for (int s = 0; s < Shape::warp_strips; ++s) {
      const int strip = place_.tile / p_.token_tiles * Shape::strips + int(threadIdx.x) / 32 * Shape::warp_strips + s;
      source_[s] = p_.weight + min(strip, p_.layout.strips - 1) * p_.layout.strip_bytes();
    }
  }
  __device__ void fetch(int slot) {
    if (place_.left > 0) {
      const int lane = threadIdx.x % 32, chunk = place_.k >> p_.chunk_shift;
      const int inside = place_.k - (chunk << p_.chunk_shift);
      const uint32_t codes = place_.k * (Shape::quads * 512) + chunk * p_.layout.scale_bytes + lane * 16;
      const uint32_t scales = (chunk + 1) * p_.layout.code_bytes + chunk * p_.layout.scale_bytes + (inside * kTileInputs >> p_.flush_shift) * 64 + lane * 16;
#pragma unroll
      for (int s = 0; s < Shape::warp_strips; ++s) {
        const uint32_t to = write_ + (slot * Shape::warp_strips + s) * Shape::slot_bytes;
#pragma unroll
        for (int q = 0; q < Shape::quads; ++q) copy_async16(to + q * 512, source_[s] + codes + q * 512);
        if (Shape::quantized && lane < Shape::scale_bytes / 16) copy_async16(to + Shape::quads * 512, source_[s] + scales);
      }
      if (place_.next(p_)) select();
    }
    commit_copies();
  }

  const TiledParams& p_;
  StreamPlace place_;
  const unsigned char* ring_;
  uint32_t write_;
  const unsigned char* source_[Shape::warp_strips];
  int slot_ = 0;
};

// Gated outputs into tiles, as the product after this one reads them.
template <class Shape>
__device__ inline void store_gated_tiles(const StreamParams& s, int strip0, int token0, const float (&acc)[Shape::warp_strips][Shape::warp_columns][4]) {
  const TiledParams& p = s.product;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < Shape::warp_strips; ++i) {
    const int n = (strip0 + i) * kStripRows + g, column = (strip0 + i) * 8 + 2 * t;
    const float gate_bias = p.bias && n < p.n ? p.bias[n] : 0, up_bias = p.bias && n + 8 < p.n ? p.bias[n + 8] : 0;
    auto gated = [&](float gate, float up) {
      gate += gate_bias, up += up_bias;
      return activate(p.activation, gate) * up;
    };
#pragma unroll
    for (int c = 0; c < Shape::warp_columns; ++c) {
      const float* v = acc[i][c];
      const uint32_t bits = transpose_8x8(pack_half2(gated(v[0], v[2]), gated(v[1], v[3])));
      const int token = token0 + c * 8 + g;
      if (token < p.t && column < p.n / 2)
        *reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(p.out) + tiled_input(token, column, s.out_tile_bytes)) = bits;
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks_per_multiprocessor) stream_kernel(const __grid_constant__ StreamParams s) {
  extern __shared__ __align__(1024) unsigned char stream_shared[];
  unsigned char* shared = stream_shared;
  __shared__ uint64_t barriers[2 * Shape::stages];
  __shared__ bool last;
  const TiledParams& p = s.product;
  const uint32_t full = shared_address(barriers), empty = shared_address(barriers + Shape::stages);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::stages; ++i) {
      init_barrier(full + i * 8, 1);
      init_barrier(empty + i * 8, Shape::consumers);
    }
    publish_barriers();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const long long blocks = gridDim.x;
  const auto begin_of = [&](long long block) {
    return s.splits == 0 ? block * p.stages / blocks : block / s.splits * p.k_stages + block % s.splits * p.k_stages / s.splits;
  };
  const long long begin = begin_of(blockIdx.x), end = begin_of(blockIdx.x + 1);
  let_next_kernel_start();
  if (warp == Shape::consumers) {
    wait_for_previous_kernel();
    if (lane == 0) fill_stream<Shape>(s, StreamPlace(p, begin, end), shared_address(shared), full, empty);
    return;
  }
  StripRing<Shape> ring(p, StreamPlace(p, begin, end), shared + Shape::stages * Shape::x_bytes + warp * Shape::warp_ring);
  wait_for_previous_kernel();
  auto barrier = [] { asm volatile("bar.sync 1, %0;" ::"n"(Shape::consumers * 32) : "memory"); };
  constexpr int kThreads = Shape::consumers * 32;
  int slot = 0;
  uint32_t phase = 0;
  for (long long stage = begin; stage < end;) {
    const int tile = int(stage / p.k_stages);
    const long long tile_begin = (long long)(tile) * p.k_stages, tile_end = tile_begin + p.k_stages;
    const long long segment_end = min(tile_end, end);
    const bool first_segment = stage == begin, whole = stage == tile_begin && segment_end == tile_end;
    float acc[Shape::warp_strips][Shape::warp_columns][4];
    uint32_t a[2][Shape::warp_strips][2][4];
    uint32_t used = 0;
    const int count = int(segment_end - stage);
    for (int done = 0; done < count; ++done) {
      uint4 codes[Shape::warp_strips][Shape::quads];
      uint2 scales[Shape::warp_strips][2] = {};
      ring.take(codes, scales);
      wait_barrier(full + slot * 8, phase);
      const uint64_t x = row_operand(shared_address(shared) + slot * Shape::x_bytes);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int strip = 0; strip < Shape::warp_strips; ++strip)
            dequantize<Shape::precision>(codes[strip][(half * 2 + i) * Shape::quads / 4], half * 2 + i, RowScales(scales[strip][half]), a[half][strip][i]);
        warpgroup_fence();
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int strip = 0; strip < Shape::warp_strips; ++strip)
            warpgroup_product(acc[strip], a[half][strip][i], x + (half * 2 + i) * 2, done > 0 || half + i > 0);
        commit_products();
        // f16 weights are operands as they come: the next stage's would be loaded over those of products still under way.
        if (half == 1 && !Shape::quantized) wait_products<0>();
        else wait_products<1>();
        // The stage before is no longer read.
        if (half == 0 && done > 0 && lane == 0) arrive(used);
      }
      used = empty + slot * 8;
      if (++slot == Shape::stages) slot = 0, phase ^= 1;
    }
    wait_products<0>();
    if (lane == 0) arrive(used);
    if (segment_end == end && threadIdx.x == 0) prefetch_share(p.next);
    stage = segment_end;
    if (!whole) {
      float* flat = &acc[0][0][0];
      auto slot_of = [&](long long block, int which) {
        return p.partials + (block * 2 + which) * size_t(Shape::accumulators) * kThreads + threadIdx.x;
      };
      float* mine = slot_of(blockIdx.x, first_segment ? 0 : 1);
#pragma unroll
      for (int i = 0; i < Shape::accumulators; ++i) __stcg(mine + i * kThreads, flat[i]);
      __threadfence();
      barrier();
      const auto block_of = [&](long long stage) { return ((stage + 1) * blocks - 1) / p.stages; };
      const long long from = s.splits == 0 ? block_of(tile_begin) : (long long)(tile) * s.splits;
      const long long to = s.splits == 0 ? block_of(tile_end - 1) : from + s.splits - 1;
      if (threadIdx.x == 0) last = atomicAdd(p.counters + tile, 1) == int(to - from);
      barrier();
      if (!last) continue;
      __threadfence();
      if (threadIdx.x == 0) p.counters[tile] = 0;
#pragma unroll
      for (int i = 0; i < Shape::accumulators; ++i) flat[i] = 0;
      // Several parts travel at a time; they are added in the order of their blocks.
      constexpr int kTogether = Shape::parts_together, kSums = Shape::accumulators < 16 ? Shape::accumulators : 16;
#pragma unroll
      for (int sum = 0; sum < Shape::accumulators; sum += kSums)
        for (long long block = from; block <= to; block += kTogether) {
          float parts[kTogether][kSums];
#pragma unroll
          for (int j = 0; j < kTogether; ++j) {
            const float* part = slot_of(block + j, begin_of(block + j) >= tile_begin ? 0 : 1) + sum * kThreads;
#pragma unroll
            for (int i = 0; i < kSums; ++i) parts[j][i] = block + j <= to ? __ldcg(part + i * kThreads) : 0;
          }
#pragma unroll
          for (int j = 0; j < kTogether; ++j)
#pragma unroll
            for (int i = 0; i < kSums; ++i) flat[sum + i] += parts[j][i];
        }
    }
    const int strip0 = tile / p.token_tiles * Shape::strips + warp * Shape::warp_strips, token0 = tile % p.token_tiles * Shape::tokens;
    if (p.epilogue == Epilogue::gate && s.out_tile_bytes > 0) store_gated_tiles<Shape>(s, strip0, token0, acc);
    else store_tile<Shape>(p, strip0, token0, acc);
  }
}

template <class Shape>
Status launch_stream(StreamParams params, const Launch& on) {
  TiledParams& p = params.product;
  p.chunk_shift = std::bit_width(unsigned(p.layout.chunk / kTileInputs)) - 1;
  p.flush_shift = std::bit_width(unsigned(p.layout.flush)) - 1;
  p.token_tiles = (p.t + Shape::tokens - 1) / Shape::tokens;
  const long long tiles = (long long)((p.layout.strips + Shape::strips - 1) / Shape::strips) * p.token_tiles;
  if (tiles > kMatmulCounters) return {Code::unsupported, "cuda stream_matmul: too many rows"};
  p.stages = tiles * p.k_stages;
  ES_RETURN_IF_ERROR(allow_shared(stream_kernel<Shape>, Shape::shared));
  const long long full = Shape::blocks_per_multiprocessor * on.device.multiprocessors;
  long long blocks = full;
  if (tiles <= full) {
    params.splits = int(std::clamp<long long>(full / tiles, 1, std::max(1, p.k_stages / Shape::least_share)));
    blocks = tiles * params.splits;
  }
  return launch(on, stream_kernel<Shape>, dim3(unsigned(blocks)), Shape::threads, Shape::shared, params);
}

template <Precision kPrecision, bool kSmall>
Status launch_stream_tokens(const StreamParams& params, const Launch& on) {
  if (params.product.t <= 16) return launch_stream<StreamShape<kPrecision, kSmall, 16>>(params, on);
  return launch_stream<StreamShape<kPrecision, kSmall, 64>>(params, on);
}

}  // namespace edgeshift::cuda
