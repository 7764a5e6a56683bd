// The matrix product of a decode batch for compute capability 9.0 (compiled for sm_90a): wgmma with the weights from registers.
//
// As in hopper_kernel.cuh a fragment of wgmma's A operand lies in a warp's registers as the strip layout has it, so that each
// code is turned into f16 once, and the tiled activations (input_tiles.h) are the B operand as they lie. A block computes tiles
// of 64 rows x kTokens tokens with one warpgroup; each warp keeps a ring of its own strip's weights in flight with cp.async,
// filled before the wait for the kernel before. One more warp copies activations: the blocks of a cluster work on neighbouring
// tiles and the same inputs, and each copies its part of them into the shared memory of all, as L2 is what activations wait for.
// (Bulk copies of weights were slower: one copy of 64 to 512 bytes takes as long to start as one of 8 KB.)
//
// A group of tiles goes to as many clusters as fill the device, each with a part of k; where there are more groups than clusters at a
// time all stages of all tiles stand in one line and each cluster takes an equal share, as in tiled_kernel.cuh. The parts of a tile
// are summed in the order of k by the last block to arrive, or by the norm behind the product (stream_matmul_parts): that takes one
// block 8 to 10 us, and every block of the norm 1.
#pragma once

#include <bit>
#include <climits>

#include "cuda/hopper.cuh"
#include "cuda/input_tiles.h"
#include "cuda/stream.h"
#include "cuda/tiled_kernel.cuh"

namespace edgeshift::cuda {

#define ES_ROW(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
// D (64 x 16, 32 or 64, 16 rows per warp) += A (registers) * B, given by the low word of its row_operand. `keep` 0 clears D first.
__device__ inline void warpgroup_product(float (&d)[2][4], const uint32_t (&a)[4], uint32_t b, int keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 keep, %13, 0;\n"
      "mov.b64 b, {%12, %14};\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, b, keep, 1, 1, 0;\n"
      "}\n"
      : ES_ROW(0), ES_ROW(1)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(keep), "n"(kRowOperandHigh));
}
__device__ inline void warpgroup_product(float (&d)[4][4], const uint32_t (&a)[4], uint32_t b, int keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 keep, %21, 0;\n"
      "mov.b64 b, {%20, %22};\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, b, keep, 1, 1, 0;\n"
      "}\n"
      : ES_ROW(0), ES_ROW(1), ES_ROW(2), ES_ROW(3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(keep), "n"(kRowOperandHigh));
}
__device__ inline void warpgroup_product(float (&d)[8][4], const uint32_t (&a)[4], uint32_t b, int keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 keep, %37, 0;\n"
      "mov.b64 b, {%36, %38};\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, b, keep, 1, 1, 0;\n"
      "}\n"
      : ES_ROW(0), ES_ROW(1), ES_ROW(2), ES_ROW(3), ES_ROW(4), ES_ROW(5), ES_ROW(6), ES_ROW(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(keep), "n"(kRowOperandHigh));
}
#undef ES_ROW

template <Precision kPrecision, bool kFlushSmall, int kTokens, int kTiles>
struct StreamShape {
  static constexpr Precision precision = kPrecision;
  static constexpr bool quantized = kPrecision != Precision::fp16;
  static constexpr int cluster = 2;      // blocks that share activations
  static constexpr int tiles = kTiles;   // of 64 inputs in a stage
  static constexpr int quads = kPrecision == Precision::int4 ? 1 : kPrecision == Precision::int8 ? 2 : 4;  // per tile
  static constexpr int scale_rows = quantized ? (kFlushSmall ? 2 : 1) : 0;                                 // per strip and tile
  static constexpr int row_inputs = scale_rows == 2 ? 32 : 64;
  static constexpr int consumers = 4, threads = 32 * consumers + 32;  // warps; the last one copies activations
  static constexpr int warp_strips = 1, strips = consumers;
  static constexpr int tokens = kTokens, warp_columns = kTokens / 8, accumulators = warp_columns * 4;
  static constexpr int x_tile = tokens * 128, x_bytes = x_tile * tiles, x_piece = x_bytes / cluster;
  static constexpr int slot_bytes = tiles * (quads * 512 + scale_rows * 64);
  static constexpr int ring_bytes = kPrecision == Precision::fp16 ? 32768 : kPrecision == Precision::int8 ? 26112 : 20480;  // of weights
  static constexpr int slots = ring_bytes / (strips * slot_bytes), warp_ring = slots * slot_bytes;
  static constexpr int blocks_per_multiprocessor = 3;
  static constexpr int room = 227 * 1024 / blocks_per_multiprocessor - 2048 - consumers * warp_ring;  // less what the kernel declares
  static constexpr int stages = std::min(12 / tiles, room / x_bytes);  // of activations
  static constexpr int least_share = 6 / tiles;                        // stages of a cluster
  static constexpr size_t shared = size_t(stages) * x_bytes + consumers * warp_ring;
  static_assert(stages >= 3 && slots >= 3);
};

// A walk over the stages of a cluster's share.
struct StreamPlace {
  int left, group, k;
  __device__ StreamPlace(const TiledParams& p, int begin, int end) : left(end - begin), group(begin / p.k_stages), k(begin - group * p.k_stages) {}
  // Whether the next group of tiles begins.
  __device__ bool next(const TiledParams& p) {
    --left;
    if (++k < p.k_stages) return false;
    k = 0, ++group;
    return true;
  }
};

// The copying lane: this block's piece of the activations of each stage, for all blocks of the cluster. Its full barriers count
// the pieces of all; its empty ones the warps of all, as it may write a slot only when nobody reads it any more.
template <class Shape>
__device__ inline void fill_stream(const StreamParams& s, StreamPlace place, uint32_t data, uint32_t full, uint32_t empty) {
  static_assert(Shape::tiles == Shape::cluster || Shape::tiles == 1);
  const uint32_t rank = cluster_rank();
  const unsigned char* x = reinterpret_cast<const unsigned char*>(s.product.x) + rank * (Shape::tiles > 1 ? s.x_tile_bytes : Shape::x_piece);
  uint32_t phase = 1;
  for (int slot = 0; place.left > 0; place.next(s.product)) {
    wait_barrier(empty + slot * 8, phase);
    arrive_expecting(full + slot * 8, Shape::x_bytes);
    copy_bulk_to((1 << Shape::cluster) - 1, data + slot * Shape::x_bytes + rank * Shape::x_piece, x + place.k * (Shape::tiles * s.x_tile_bytes),
                 Shape::x_piece, full + slot * 8);
    if (++slot == Shape::stages) slot = 0, phase ^= 1;
  }
}

// Codes and scales of a strip's stage, as a lane holds them.
template <class Shape>
struct StripStage {
  uint4 codes[Shape::tiles * Shape::quads];
  uint2 scales[Shape::quantized ? Shape::tiles * Shape::scale_rows : 1];
  // Of a half of a tile.
  __device__ RowScales scales_of(int tile, int half) const {
    return RowScales(Shape::quantized ? scales[tile * Shape::scale_rows + half * (Shape::scale_rows - 1)] : uint2());
  }
};

// A warp's ring of the weights of its strip: one slot per stage, the warp's own copies.
template <class Shape>
class StripRing {
 public:
  __device__ StripRing(const TiledParams& p, StreamPlace place, int rank, unsigned char* ring)
      : p_(p), place_(place), ring_(shared_address(ring) + threadIdx.x % 32 * 16), strip_(rank * Shape::strips + int(threadIdx.x) / 32) {
    select();
    for (int i = 0; i < Shape::slots; ++i) fetch(i);
  }

  // The next stage; its slot is free afterwards and is filled again.
  __device__ void take(StripStage<Shape>& stage) {
    wait_copies<Shape::slots - 1>();
    __syncwarp();
    const uint32_t from = ring_ + slot_ * Shape::slot_bytes;
#pragma unroll
    for (int q = 0; q < Shape::tiles * Shape::quads; ++q) stage.codes[q] = load_shared16(from + q * 512);
    if constexpr (Shape::quantized) {
      const uint32_t lane = threadIdx.x % 32, scales = from + Shape::tiles * Shape::quads * 512 - lane * 16 + lane / 4 * 8;
#pragma unroll
      for (int i = 0; i < Shape::tiles * Shape::scale_rows; ++i) stage.scales[i] = load_shared8(scales + i * 64);
    }
    __syncwarp();
    fetch(slot_);
    slot_ = slot_ + 1 == Shape::slots ? 0 : slot_ + 1;
  }

 private:
  // Points at the chunk of place_.
  __device__ void select() {
    const int strip = min(place_.group * (Shape::strips * Shape::cluster) + strip_, p_.layout.strips - 1);
    const int tile = place_.k * Shape::tiles, chunk = tile >> p_.chunk_shift;
    inside_ = tile - (chunk << p_.chunk_shift);
    chunk_ = p_.weight + strip * p_.layout.strip_bytes() + chunk * p_.layout.chunk_bytes();
  }
  __device__ void fetch(int slot) {
    if (place_.left > 0) {
      const uint32_t to = ring_ + slot * Shape::slot_bytes, lane = threadIdx.x % 32;
      const unsigned char* codes = chunk_ + uint32_t(inside_ * (Shape::quads * 512) + lane * 16);
#pragma unroll
      for (int q = 0; q < Shape::tiles * Shape::quads; ++q) copy_async16(to + q * 512, codes + q * 512);
      // A row of scales is 64 bytes, and may be that of several tiles.
      const uint32_t row = (inside_ * kTileInputs + lane / 4 * Shape::row_inputs) >> p_.flush_shift;
      if (Shape::quantized && lane < Shape::tiles * Shape::scale_rows * 4)
        copy_async16(to + Shape::tiles * Shape::quads * 512, chunk_ + uint32_t(p_.layout.code_bytes + row * 64 + lane % 4 * 16));
      inside_ += Shape::tiles;
      if (inside_ >> p_.chunk_shift) inside_ = 0, chunk_ += p_.layout.chunk_bytes();
      if (place_.next(p_)) select();
    }
    commit_copies();
  }

  const TiledParams& p_;
  StreamPlace place_;
  uint32_t ring_;
  int strip_;  // within a group
  const unsigned char* chunk_;
  int inside_;  // tiles of the chunk that were fetched
  int slot_ = 0;
};

// The gated outputs of a strip's column of eight tokens into tiles, as the product after this one reads them.
__device__ inline void store_gated_tile(const StreamParams& s, int strip, int token, const float (&v)[4]) {
  const TiledParams& p = s.product;
  const int g = threadIdx.x % 32 / 4, n = strip * kStripRows + g, column = strip * 8 + threadIdx.x % 4 * 2;
  const float gate_bias = p.bias && n < p.n ? p.bias[n] : 0, up_bias = p.bias && n + 8 < p.n ? p.bias[n + 8] : 0;
  auto gated = [&](float gate, float up) {
    gate += gate_bias, up += up_bias;
    return activate(p.activation, gate) * up;
  };
  const uint32_t bits = transpose_8x8(pack_half2(gated(v[0], v[2]), gated(v[1], v[3])));
  if (token + g < p.t && column < p.n / 2)
    *reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(p.out) + tiled_input(token + g, column, s.out_tile_bytes)) = bits;
}

// The parts of tiles that several clusters share: of each block two, as a stream's share can end within two tiles.
template <class Shape>
class Parts {
 public:
  __device__ Parts(const TiledParams& p, int rank) : parts_(reinterpret_cast<float4*>(p.partials)), rank_(rank) {}
  __device__ void write(int cluster, int which, const float (&acc)[Shape::warp_columns][4]) const {
#pragma unroll
    for (int c = 0; c < Shape::warp_columns; ++c) __stcg(at(cluster, which, c), make_float4(acc[c][0], acc[c][1], acc[c][2], acc[c][3]));
    __threadfence();
  }
  // Adds up those of clusters from .. to, in their order; several travel at a time.
  template <class Which>
  __device__ void sum(float (&acc)[Shape::warp_columns][4], int from, int to, const Which& which) const {
    constexpr int kTogether = Shape::warp_columns > 4 ? 2 : 4;
#pragma unroll
    for (int c = 0; c < Shape::warp_columns; ++c) acc[c][0] = acc[c][1] = acc[c][2] = acc[c][3] = 0;
    for (int first = from; first <= to; first += kTogether) {
      float4 values[kTogether][Shape::warp_columns];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const float4* part = at(first + j, which(first + j), 0);
#pragma unroll
        for (int c = 0; c < Shape::warp_columns; ++c) values[j][c] = first + j <= to ? __ldcg(part + c * kThreads) : float4();
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
#pragma unroll
        for (int c = 0; c < Shape::warp_columns; ++c) {
          const float4& v = values[j][c];
          acc[c][0] += v.x, acc[c][1] += v.y, acc[c][2] += v.z, acc[c][3] += v.w;
        }
    }
  }

 private:
  static constexpr int kThreads = Shape::consumers * 32;
  __device__ float4* at(int cluster, int which, int column) const {
    const int block = cluster * Shape::cluster + rank_;
    return parts_ + ((size_t(block) * 2 + which) * Shape::warp_columns + column) * kThreads + threadIdx.x;
  }
  float4* parts_;
  int rank_;
};

// A warp's part of its strip's outputs as OutputParts has them; eight rows of a token are 32 bytes.
template <class Shape>
__device__ inline void leave_part(const TiledParams& p, int part, int strip, const float (&acc)[Shape::warp_columns][4]) {
  const int lane = threadIdx.x % 32, n = strip * kStripRows + lane / 4, first = lane % 4 * 2;
  float* out = p.partials + size_t(part) * p.t * p.n;
#pragma unroll
  for (int c = 0; c < Shape::warp_columns; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = c * 8 + first + i % 2, row = n + i / 2 * 8;
      if (token < p.t && row < p.n) __stcg(out + token * p.n + row, acc[c][i]);
    }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks_per_multiprocessor) stream_kernel(const __grid_constant__ StreamParams s) {
  extern __shared__ __align__(1024) unsigned char stream_shared[];
  __shared__ uint64_t barriers[2 * Shape::stages];
  __shared__ bool last;
  const TiledParams& p = s.product;
  // Opaque, or they are worked out anew in each stage.
  uint32_t data = shared_address(stream_shared), full = shared_address(barriers);
  asm volatile("" : "+r"(data), "+r"(full));
  const uint32_t empty = full + Shape::stages * 8;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = int(cluster_rank());
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::stages; ++i) {
      init_barrier(full + i * 8, 1);
      init_barrier(empty + i * 8, Shape::consumers * Shape::cluster);
    }
    publish_barriers();
  }
  __syncwarp();
  arrive_at_cluster();
  const int clusters = gridDim.x / Shape::cluster, cluster = blockIdx.x / Shape::cluster;
  const auto begin_of = [&](int cluster) {
    return s.splits == 0 ? int(cluster * p.stages / clusters) : cluster / s.splits * p.k_stages + cluster % s.splits * p.k_stages / s.splits;
  };
  const int begin = begin_of(cluster), end = begin_of(cluster + 1);
  let_next_kernel_start();
  if (warp == Shape::consumers) {
    wait_for_cluster();
    wait_for_previous_kernel();
    if (lane == 0) fill_stream<Shape>(s, StreamPlace(p, begin, end), data, full, empty);
    __syncwarp();
    arrive_at_cluster();
    wait_for_cluster();
    return;
  }
  StripRing<Shape> ring(p, StreamPlace(p, begin, end), rank, stream_shared + Shape::stages * Shape::x_bytes + warp * Shape::warp_ring);
  wait_for_cluster();
  wait_for_previous_kernel();
  const Parts<Shape> parts(p, rank);
  auto barrier = [] { asm volatile("bar.sync 1, %0;" ::"n"(Shape::consumers * 32) : "memory"); };
  auto release = [&](uint32_t slot) {
    if (lane < Shape::cluster) arrive_at(lane, slot);
  };
  int slot = 0;
  uint32_t phase = 0;
  for (int stage = begin; stage < end;) {
    const int group = stage / p.k_stages, tile = group * Shape::cluster + rank, tile_begin = group * p.k_stages, tile_end = tile_begin + p.k_stages;
    const int segment_end = min(tile_end, end), count = segment_end - stage;
    const bool first_segment = stage == begin, whole = stage == tile_begin && segment_end == tile_end;
    float acc[1][Shape::warp_columns][4];
    uint32_t a[2][2][4];
    StripStage<Shape> stages[2];
    uint32_t used = 0;
    ring.take(stages[0]);
    // One stage. The next one's weights are taken while its products are under way, and are never those that products read: f16
    // weights are operands as they come.
    auto multiply = [&](const StripStage<Shape>& now, StripStage<Shape>& next, int done) {
      wait_barrier(full + slot * 8, phase);
#pragma unroll
      for (int half = 0; half < 2 * Shape::tiles; ++half) {
        const int tile = half / 2;
        const uint32_t x = row_operand_low(data + slot * Shape::x_bytes + tile * Shape::x_tile);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int step = half % 2 * 2 + i;
          dequantize<Shape::precision>(now.codes[(tile * 4 + step) * Shape::quads / 4], step, now.scales_of(tile, half % 2), a[half % 2][i]);
        }
        warpgroup_fence();
#pragma unroll
        for (int i = 0; i < 2; ++i) warpgroup_product(acc[0], a[half % 2][i], x + (half % 2 * 2 + i) * 2, done > 0 || half + i > 0);
        commit_products();
        if (half == 2 * Shape::tiles - 1 && done + 1 < count) ring.take(next);
        wait_products<1>();
        // The stage before is no longer read.
        if (half == 0 && done > 0) release(used);
      }
      used = empty + slot * 8;
      if (++slot == Shape::stages) slot = 0, phase ^= 1;
    };
    for (int done = 0; done < count; done += 2) {
      multiply(stages[0], stages[1], done);
      if (done + 1 < count) multiply(stages[1], stages[0], done + 1);
    }
    wait_products<0>();
    release(used);
    if (segment_end == end && threadIdx.x == 0) prefetch_share(p.next);
    stage = segment_end;
    const int strip = tile * Shape::strips + warp;
    if (!whole && s.leave_parts) {
      leave_part<Shape>(p, cluster % s.splits, strip, acc[0]);
      break;
    }
    if (!whole) {
      parts.write(cluster, first_segment ? 0 : 1, acc[0]);
      barrier();
      const auto cluster_of = [&](long long stage) { return int(((stage + 1) * clusters - 1) / p.stages); };
      const int from = s.splits == 0 ? cluster_of(tile_begin) : group * s.splits, to = s.splits == 0 ? cluster_of(tile_end - 1) : from + s.splits - 1;
      if (threadIdx.x == 0) last = atomicAdd(p.counters + tile, 1) == to - from;
      barrier();
      if (!last) continue;
      __threadfence();
      if (threadIdx.x == 0) p.counters[tile] = 0;
      parts.sum(acc[0], from, to, [&](int at) { return begin_of(at) >= tile_begin ? 0 : 1; });
    }
    if (p.epilogue == Epilogue::gate && s.out_tile_bytes > 0) {
#pragma unroll
      for (int c = 0; c < Shape::warp_columns; ++c) store_gated_tile(s, strip, c * 8, acc[0][c]);
    } else {
      store_tile<Shape>(p, strip, 0, acc);
    }
  }
  // A block's barriers must last until no other block arrives there.
  __syncwarp();
  arrive_at_cluster();
  wait_for_cluster();
}

template <class Shape>
Status launch_stream(StreamParams& params, const Launch& on) {
  TiledParams& p = params.product;
  p.chunk_shift = std::bit_width(unsigned(p.layout.chunk / kTileInputs)) - 1;
  p.flush_shift = std::bit_width(unsigned(p.layout.flush)) - 1;
  p.k_stages = p.k / (kTileInputs * Shape::tiles);
  const int tiles = (p.layout.strips + Shape::strips - 1) / Shape::strips, groups = (tiles + Shape::cluster - 1) / Shape::cluster;
  p.stages = (long long)(groups)*p.k_stages;
  if (groups * Shape::cluster > kMatmulCounters || p.stages > INT_MAX) return {Code::unsupported, "cuda stream_matmul: too many rows"};
  ES_RETURN_IF_ERROR(allow_shared(stream_kernel<Shape>, Shape::shared));
  static ClustersAtOnce at_once;
  int clusters = 0;
  ES_RETURN_IF_ERROR(at_once.find(on.device, stream_kernel<Shape>, Shape::cluster, Shape::threads, Shape::shared, clusters));
  if (clusters < 1) return {Code::unsupported, "cuda stream_matmul: this device runs no clusters of two blocks"};
  if (groups <= clusters) {
    params.splits = std::clamp(clusters / groups, 1, std::max(1, p.k_stages / Shape::least_share));
    clusters = groups * params.splits;
  }
  params.leave_parts = params.leave_parts && params.splits > 1;
  return launch_in_clusters(on, Shape::cluster, stream_kernel<Shape>, dim3(unsigned(clusters * Shape::cluster)), Shape::threads, Shape::shared, params);
}

template <Precision kPrecision, bool kSmall, int kTiles>
Status launch_stream_tokens(StreamParams& params, const Launch& on) {
  if (params.product.t <= 16) return launch_stream<StreamShape<kPrecision, kSmall, 16, kTiles>>(params, on);
  if (params.product.t <= 32) return launch_stream<StreamShape<kPrecision, kSmall, 32, kTiles>>(params, on);
  return launch_stream<StreamShape<kPrecision, kSmall, 64, kTiles>>(params, on);
}

// Two tiles in a stage, where chunks and inputs have whole ones: half the instructions beside dequantization and products.
template <Precision kPrecision, bool kSmall>
Status launch_stream_tiles(StreamParams& params, const Launch& on) {
  const TiledParams& p = params.product;
  if (p.k % (2 * kTileInputs) == 0 && p.layout.chunk % (2 * kTileInputs) == 0) return launch_stream_tokens<kPrecision, kSmall, 2>(params, on);
  return launch_stream_tokens<kPrecision, kSmall, 1>(params, on);
}

}  // namespace edgeshift::cuda
